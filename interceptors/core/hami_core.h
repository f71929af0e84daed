/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hami_core.h: everything a front end may ask of the core. The core knows no vendor and no driver API.
 *
 * Words: a *device* is a record of the policy, named by its index there; a *hold* is memory charged to this process; a *book*
 * remembers which hold belongs to which pointer or handle; an *admission* is the leave to launch.
 *
 * Promises, for every function here: errno is as it was; the host process is never ended; no signal handler, no thread and
 * no constructor is installed; nothing happens before the first call; safe from any thread, after fork, in a vfork child
 * that only calls exec, and while the process exits. The shared mutex is never held when a function returns.
 */
#ifndef HAMI_CORE_H
#define HAMI_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hami_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HAMI_EXPORT __attribute__((visibility("default")))
#define HAMI_LIKELY(x) __builtin_expect(!!(x), 1)
#define HAMI_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* -- verdicts (core/hami_core.h is the only place that names them) ---------------------------------------------- */

enum hami_verdict {
    HAMI_OK = 0,
    HAMI_OVER_LIMIT = 1,  /* the limit would be passed: the front end answers its driver's out-of-memory code */
    HAMI_REFUSED = 2,     /* no policy, damaged policy, unknown device, no state file, no slot: its driver's "not permitted" code */
};

/* -- devices (policy.c) ----------------------------------------------------------------------------------------- */

#define HAMI_NO_DEVICE (-1) /* the policy has no record for this device, or there is no usable policy: refuse */

/*
 * The index of the policy record that declares identity (`kind`, `value`), case-insensitively, or HAMI_NO_DEVICE.
 * Front ends ask once per driver ordinal and cache the answer for as long as hami_policy_generation() stays the same.
 */
int hami_device_find(const char *kind, const char *value);

/* Changes whenever the policy was replaced; one atomic load of the read-only control file. 0: no policy. */
uint32_t hami_policy_generation(void);

/* The policy's record of a device, valid for ever (old policies are never unmapped); NULL for HAMI_NO_DEVICE. */
const struct hami_policy_device *hami_device_policy(int device);

/* How many records the policy has, and whether there is a usable policy at all. */
int hami_device_count(void);
bool hami_policy_usable(void);

/* -- memory (memory.c) ------------------------------------------------------------------------------------------ */

/* Memory charged to this process and not yet entered in a book. Plain data: copy it, put it on the stack. */
struct hami_hold {
    int device;
    uint64_t bytes;
    uint32_t flags; /* internal */
};

/*
 * Reserve `bytes` (an upper bound of what the driver may take) before the driver is asked. HAMI_OK: `hold` must go to exactly
 * one of hami_settle, hami_give_back or hami_book_keep. On any other verdict nothing is held. On refusal dead processes are
 * reclaimed and it is tried once more. `device` HAMI_NO_DEVICE is HAMI_REFUSED; a device without a limit is counted all the same.
 */
enum hami_verdict hami_reserve(int device, uint64_t bytes, struct hami_hold *hold);

/* As hami_reserve, but takes whatever is left under the limit, at most `most`; HAMI_OVER_LIMIT when that is less than `least`. */
enum hami_verdict hami_reserve_rest(int device, uint64_t least, uint64_t most, struct hami_hold *hold);

/*
 * The driver took `actual` bytes: lower the hold to that. `actual` above the reservation takes the difference if there is
 * room; if not: HAMI_OVER_LIMIT, the hold is unchanged, and the caller must undo the driver's allocation and give back.
 */
enum hami_verdict hami_settle(struct hami_hold *hold, uint64_t actual);

/* Uncharge all of it: the driver refused, or the memory has been freed. Leaves the hold empty; an empty hold is harmless. */
void hami_give_back(struct hami_hold *hold);

/* The same books for managed memory of an oversubscribed device (virtual_bytes); not counted against memory_bytes. */
enum hami_verdict hami_reserve_virtual(int device, uint64_t bytes, struct hami_hold *hold);

/* What a query shall show: total = the limit (or the capacity), used = what the container holds. Never fails: all zero without a policy. */
struct hami_memory_view {
    uint64_t total;
    uint64_t used;
    uint64_t free; /* total - used, never below 0 */
    bool limited;
};
struct hami_memory_view hami_memory_view(int device);

/* What a first context costs here: the policy's figure, else what an earlier process of the container measured, else 0. */
uint64_t hami_context_bytes(int device);
void hami_context_measured(int device, uint64_t bytes);
/* Serialises measuring among the container's processes (record lock on the state file, taken outside any mutex). Always pair. */
void hami_measure_begin(void);
void hami_measure_end(void);

/* A handle exported by, or imported into, a process of this container. Found: the importer need not be charged. */
void hami_export_note(const void *handle, size_t length, uint64_t bytes);
bool hami_export_known(const void *handle, size_t length);

/* -- books (books.c): key → hold, process-local, sharded, flat to 100,000 entries --------------------------------- */

enum hami_book {
    HAMI_BOOK_POINTER,  /* device pointers */
    HAMI_BOOK_ARRAY,    /* arrays and mipmapped arrays */
    HAMI_BOOK_HANDLE,   /* handles of physical memory: references + mappings */
    HAMI_BOOK_MAPPING,  /* virtual address → handle mapped there */
    HAMI_BOOK_POOL,     /* memory pools */
    HAMI_BOOK_CONTEXT,  /* contexts, and whatever lives with them */
    HAMI_BOOK_GRAPH,    /* graphs and executable graphs */
    HAMI_BOOK_CHUNK,    /* chunks that small allocations share */
    HAMI_BOOK_OTHER,    /* a front end's own */
    HAMI_BOOKS
};

struct hami_entry {
    uint64_t key;
    struct hami_hold hold;
    uint64_t tag;       /* the front end's own: size asked, owner pool, function… */
    uint32_t references;
};

/* Settle the hold at `actual` and remember it under `key`. HAMI_OVER_LIMIT as in hami_settle. A key that is there already is replaced and given back. */
enum hami_verdict hami_book_keep(enum hami_book book, uint64_t key, struct hami_hold *hold, uint64_t actual, uint64_t tag);
/* Take the entry out (before the driver's free, since the driver may hand the address out again at once). False: not ours. */
bool hami_book_take(enum hami_book book, uint64_t key, struct hami_entry *entry);
/* Put an entry back that hami_book_take took: the driver's free failed. */
void hami_book_return(enum hami_book book, const struct hami_entry *entry);
bool hami_book_find(enum hami_book book, uint64_t key, struct hami_entry *entry);
/* references += change; answers what is left. At 0 the entry is taken out into `entry` (its hold is the caller's to give back). -1: not there. */
int64_t hami_book_refer(enum hami_book book, uint64_t key, int32_t change, struct hami_entry *entry);
/* Every entry for which `match` is true is taken out and given back: a context went with all it had. Answers how many. */
size_t hami_book_sweep(enum hami_book book, bool (*match)(const struct hami_entry *entry, void *context), void *context);

/*
 * Small allocations share chunks of the driver's: `hami_chunk_keep` charges a chunk (key >> log2(chunk)) once, for its first
 * block, and gives the rest of `hold` back; `hami_chunk_drop` uncharges it with its last. Used through hami_linear_*, below.
 *
 * Linear memory as a driver really takes it: at least `small_below` bytes are rounded up to `granule`; smaller blocks are
 * charged by chunk. A granule of 0 charges what was asked.
 */
struct hami_linear {
    uint64_t granule;
    uint64_t small_below;
    uint64_t chunk;
};
enum hami_verdict hami_linear_reserve(const struct hami_linear *how, int device, uint64_t bytes, struct hami_hold *hold);
enum hami_verdict hami_linear_keep(const struct hami_linear *how, uint64_t pointer, uint64_t bytes, struct hami_hold *hold);
bool hami_linear_take(const struct hami_linear *how, uint64_t pointer, struct hami_entry *entry);
void hami_linear_freed(const struct hami_linear *how, struct hami_entry *entry);    /* the driver has freed it */
void hami_linear_return(const struct hami_linear *how, const struct hami_entry *entry); /* the driver's free failed */
/* hami_book_sweep for linear memory: small blocks let go of their chunks too. For HAMI_BOOK_POINTER use this one. */
size_t hami_linear_sweep(const struct hami_linear *how, bool (*match)(const struct hami_entry *entry, void *context), void *context);

/* -- compute (compute.c) ---------------------------------------------------------------------------------------- */

/* One launch, from hami_launch_begin to hami_launch_end. Plain data on the caller's stack. */
struct hami_launch {
    int device;
    uint64_t key;         /* function (or executable graph) mixed with log2 of its grid */
    uint64_t charged_ns;
    bool sample;          /* the front end shall put hami_sample_before and _after around this one, or time it itself and report it */
    uint32_t pair;        /* internal: which pair of events times it */
};

/*
 * One load and a branch when no limit applies to any device of the container: this is the gate in front of all the rest
 * (<= 10 ns with the wrapper around it). True also when the container is suspended.
 */
bool hami_compute_limited(void);

/* `function`: address or handle; `work`: number of blocks (any measure of size); `may_wait`: false in stream capture or a driver's callback.
 * Charges the expected cost, waits until the container's share allows it, and answers. HAMI_REFUSED without a policy. */
enum hami_verdict hami_launch_begin(int device, uint64_t function, uint64_t work, bool may_wait, struct hami_launch *launch);
/* The driver refused the launch: what was charged is given back. */
void hami_launch_failed(const struct hami_launch *launch);
/* A sampled launch took `ns` of device time: learn it, and correct what was charged. `key`, `charged_ns` from the launch. */
void hami_launch_observed(int device, uint64_t key, uint64_t charged_ns, uint64_t ns);

/*
 * Timing by events, generic: the front end supplies five calls, the core keeps a small ring of pairs per device and harvests
 * finished ones on later launches. Every call returns true on success. `stream` is the front end's handle.
 */
struct hami_event_calls {
    bool (*create)(void **event);
    bool (*record)(void *event, void *stream);
    bool (*done)(void *event);                                 /* finished? never blocks */
    bool (*elapsed_ns)(void *from, void *to, uint64_t *ns);
    void (*destroy)(void *event);
};
/* Around a launch whose `sample` is set: before(), the driver's launch, after(). before() false: not sampled this time. */
bool hami_sample_before(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, uint64_t context);
void hami_sample_after(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, bool launched);
/* A context (or the whole device, context 0) goes: forget its pairs without touching the driver. */
void hami_sample_forget(uint64_t context);

/* -- symbols (resolve.c) ---------------------------------------------------------------------------------------- */

/* One row per hooked symbol, generated. Sorted by name. */
struct hami_symbol {
    const char *name;
    void *hook;               /* our exported function */
    _Atomic(void *) *real;    /* where the driver's own address is kept */
    uint32_t flags;           /* HAMI_SYMBOL_… */
};
#define HAMI_SYMBOL_RESOLVER 1u /* never handed out by address mapping (dlsym itself) */

/* One driver library that a front end stands before, generated; registered with HAMI_LIBRARY() in the generated file. */
struct hami_library {
    const char *api;             /* "cuda" */
    const char *soname;          /* "libcuda.so.1" */
    const char *prefix;          /* names that can be ours begin so: "cu" */
    const struct hami_symbol *symbols;
    size_t count;
    const char *const *known;    /* every classified name, sorted, for counting unknown ones */
    size_t known_count;
    const char *const *fallbacks; /* other names to load it by, tried in turn, NULL-terminated; NULL: none */
};
/* The libraries of this shared object: defined by the generated file, NULL-terminated. */
extern const struct hami_library *const hami_libraries[];

/* The driver's own function, resolved on first use from the loaded (else dlopen'ed) library; NULL when it has none. Never NULL→hook. */
void *hami_real(const struct hami_library *library, const struct hami_symbol *symbol);
/* The hook for the address a driver's resolver answered, or the address itself. Unknown names are counted. */
void *hami_hook_for(const struct hami_library *library, const char *name, void *address);
/* By name: the row, or NULL. Perfect hash or binary search. */
const struct hami_symbol *hami_symbol_find(const struct hami_library *library, const char *name);
/* Look up a driver's function that we do not hook. */
void *hami_driver_symbol(const struct hami_library *library, const char *name);
void hami_count_private_table(void);

/* -- manners (process.c, report.c) ------------------------------------------------------------------------------ */

/* True when this thread is not inside a hook already. The driver calls its own exports: those inner calls go straight through. Always pair. */
bool hami_enter(void);
void hami_leave(void);

/*
 * `reset` is run once in each forked child, before any hook or anything else of this library there: forget (do not free: another
 * thread may have been in the middle of a change when the process forked) whatever belongs to the parent, holds included, and
 * make your locks new. It must call nothing of the core. Registering the same function again is harmless. At most 16 functions.
 */
void hami_on_child(void (*reset)(void));

/* Once per process and `what`: one line on stderr, "hami: ...". Keep `what` static. */
void hami_say_once(const char *what, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* CLOCK_MONOTONIC in ns; tests built with HAMI_TESTING may replace it. */
uint64_t hami_now_ns(void);
#ifdef HAMI_TESTING
extern uint64_t (*hami_test_clock)(void);
extern void (*hami_test_sleep)(uint64_t until_ns);
#endif

/* A numbered point between two writes of shared state; with HAMI_TESTING, HAMI_TEST_DIE_AT=<n> raises SIGKILL at the n-th. */
#ifdef HAMI_TESTING
void hami_write_point(int number);
#else
#define hami_write_point(number) ((void)0)
#endif

#ifdef __cplusplus
}
#endif

#endif
