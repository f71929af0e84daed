/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of the fake CUDA driver: what its files know of each other. Physical memory and time are the card's
 * (hami_card.h, hami_card_time.h); here is what a driver does with them. One lock guards it all and is never held in a sleep.
 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include "cuda_fake.h"

#include "hami_card_time.h"

#define FC_MACHINE "HAMI_FAKE_NVIDIA"
#define FC_MIB ((uint64_t)1 << 20)
#define FC_GRANULE (2 * FC_MIB)      /* physical memory comes in pages of this size */
#define FC_SMALL_BELOW FC_MIB        /* smaller blocks share pages */
#define FC_POOL_GROWTH (32 * FC_MIB) /* a pool takes at least that much at once */
#define FC_ARRAY_GRANULE (64 << 10)
#define FC_PITCH 512
#define FC_SHADOW FC_MIB             /* of each block, the first part has data that can be copied */
#define FC_QUEUE 1024                /* launches that a stream takes before the caller has to wait */

enum { FC_DEVICES = 64 };
enum fc_what { FC_LINEAR, FC_SMALL, FC_MANAGED, FC_POOLED, FC_GRAPH, FC_FOREIGN, FC_RESERVED, FC_MAPPED };

/* A device as this process sees it: CUDA_VISIBLE_DEVICES chooses and orders. */
struct fc_device {
    int card;                 /* its index in the machine file and on the card */
    bool mig;
    char uuid[80];            /* as CUDA_VISIBLE_DEVICES would name it */
    struct CUctx_st *primary;
    unsigned primary_flags, retained;
    int contexts;             /* all, the primary one included: the first one costs memory */
    uint64_t context_bytes;
    struct CUmemPoolHandle_st *default_pool, *pool;
    uint64_t graph_used, graph_used_high, graph_reserved, graph_reserved_high;
};

struct CUstream_st {
    struct CUctx_st *context;
    struct CUstream_st *next;
    uint64_t tail;            /* when all that was given to it will be done */
    uint64_t finishes[FC_QUEUE];
    uint64_t launches;
    uint64_t id;
    int callbacks;            /* host functions that have not run yet */
    int priority;
    unsigned flags;
    struct CUgraph_st *capture;
    bool capture_origin, capture_global;
};

struct fc_heap { uint64_t bytes, physical; };

struct CUctx_st {
    int device;
    bool primary, alive;
    unsigned flags;
    uint64_t id;
    struct CUstream_st *streams; /* all of its streams, its default ones included */
    struct CUstream_st *legacy, *per_thread;
    struct fc_heap heaps[2]; /* what kernels print into, and what they allocate from */
    struct CUctx_st *next;
};

struct CUevent_st {
    struct CUctx_st *context;
    uint64_t time; /* when it happens; 0: not recorded */
    unsigned flags;
    struct CUgraph_st *capture;
};

struct CUmemPoolHandle_st {
    int device;
    bool is_default;
    uint64_t used, used_high, reserved, reserved_high, threshold, most;
    struct CUmemPoolHandle_st *next;
};

struct fc_chunk {
    uint64_t base;
    int device;
    unsigned used_units, hint;
    unsigned char units[4096]; /* of 512 bytes */
    struct fc_chunk *next;
};

/* Addresses that mean something. */
struct fc_range {
    uint64_t start, size; /* what the program asked for */
    uint64_t span;        /* what the address space gave */
    uint64_t physical;    /* what the card gave, if this range holds it by itself */
    enum fc_what what;
    int device;
    struct CUctx_st *context;
    struct fc_chunk *chunk;
    struct CUmemPoolHandle_st *pool;
    struct fc_handle *handle;
    unsigned char *shadow;
    uint64_t id;
};

/* Physical memory without an address (cuMemCreate). */
struct fc_handle {
    uint64_t id, size;
    int device;
    long references, mappings;
    bool imported;
    uint64_t origin_id;
    int64_t origin_pid;
    struct fc_handle *next;
};

struct CUfunc_st {
    char *name;
    uint64_t duration_ns;
    uint32_t permille;
    bool by_argument; /* kernelParams[0] says how long */
    struct CUmod_st *module;
    struct CUfunc_st *next;
};

struct CUmod_st {
    bool library;
    struct CUfunc_st *functions;
};

/* device.c */
extern pthread_mutex_t fc_mutex;
extern struct fc_device fc_devices[FC_DEVICES];
extern int fc_device_count;
CUresult fc_ready(void);                       /* initialised, and not by a parent process */
CUresult fc_known(CUdevice device);            /* fc_ready, and there is this device, and it is not lost */
CUresult fc_code(enum card_answer answer);
static inline int fc_card(int device) { return fc_devices[device].card; }
static inline uint64_t fc_round(uint64_t bytes, uint64_t granule) { return (bytes + granule - 1) / granule * granule; }
static inline void fc_lock(void) { pthread_mutex_lock(&fc_mutex); }
static inline CUresult fc_unlock(CUresult result) { pthread_mutex_unlock(&fc_mutex); return result; }
uint64_t fc_next_id(void);

/* context.c */
extern _Thread_local struct CUctx_st *fc_stack[64];
extern _Thread_local int fc_depth;
CUresult fc_current(struct CUctx_st **context); /* fc_ready, and there is a current context that is alive */
bool fc_context_alive(const struct CUctx_st *context);

/* ranges.c: call with the lock held */
uint64_t fc_address(uint64_t span);
struct fc_range *fc_range_add(uint64_t start, uint64_t span, uint64_t size, enum fc_what what, int device);
struct fc_range *fc_range_at(uint64_t address);  /* the range that has this address in it; a mapping before its reservation */
struct fc_range *fc_range_from(uint64_t address); /* the one that begins there */
void fc_range_drop(struct fc_range *range);
void fc_ranges_each(void (*visit)(struct fc_range *range, void *with), void *with);

/* memory.c: with the lock held */
void fc_release(struct fc_range *range);
void fc_context_memory_gone(struct CUctx_st *context);
void fc_touch(struct fc_range *range, uint64_t bytes);

/* arrays.c, streams.c, green.c: with the lock held */
void fc_context_heaps_gone(struct CUctx_st *context);
void fc_context_arrays_gone(struct CUctx_st *context);
void fc_context_streams_gone(struct CUctx_st *context);

/* pools.c: with the lock held */
CUresult fc_pool_alloc(struct CUmemPoolHandle_st *pool, struct CUctx_st *context, uint64_t bytes, CUdeviceptr *pointer);
void fc_pool_freed(struct fc_range *range);
void fc_pools_trim(int device); /* a point of synchronisation: what is above the thresholds goes back */

/* vmm.c: with the lock held */
void fc_handle_mapped(struct fc_handle *handle, long change);
struct fc_handle *fc_handle_of(CUmemGenericAllocationHandle wanted); /* NULL: there is none */

/* streams.c */
CUresult fc_stream(CUstream given, struct CUstream_st **stream); /* the default streams by their names too; needs a current context */
void fc_stream_wait_order(struct CUstream_st *stream); /* with the lock: the default stream waits for the others and they for it */
CUresult fc_stream_done(struct CUstream_st *stream);   /* without the lock: sleeps until all it was given is done */
CUresult fc_context_done(struct CUctx_st *context);

/* launch.c */
uint64_t fc_duration(const struct CUfunc_st *function, void **parameters);
CUresult fc_run(struct CUstream_st *stream, uint64_t duration_ns, uint32_t permille); /* without the lock; may wait for room in the queue */

/* graphs.c: with the lock held */
bool fc_capture_forbids(void); /* and ends the captures that are under way in the global mode */
CUresult fc_capture_kernel(struct CUgraph_st *graph, uint64_t duration_ns, uint32_t permille);
CUresult fc_capture_alloc(struct CUgraph_st *graph, int device, uint64_t bytes, CUdeviceptr *pointer);
CUresult fc_capture_free(struct CUgraph_st *graph, CUdeviceptr pointer);
void fc_graph_memory_freed(struct fc_range *range);

#endif
