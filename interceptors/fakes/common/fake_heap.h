/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_heap.h: what the fake drivers of HIP, Ascend and CNDrv have in common, below their names: blocks, pools, handles with
 * mappings, streams and events, all of them on the card (hami_card.h), which is the oracle of the tests. A block of 1 MiB or
 * more takes whole pages of 2 MiB; smaller ones share such a page, which goes back with its last block. A pool grows by
 * pages and keeps what is freed until somebody waits for its stream or trims it.
 *
 * To be included by one file of a fake. Every call may come from any thread: one lock, never held in a sleep.
 */
#ifndef HAMI_FAKE_HEAP_H
#define HAMI_FAKE_HEAP_H

#include "hami_card_time.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FH_PAGE ((uint64_t)2 << 20)
#define FH_SMALL_BELOW ((uint64_t)1 << 20)
#define FH_UNIT 256u

enum fh_kind { FH_LINEAR, FH_SMALL, FH_PAGE_OF_SMALL, FH_POOLED, FH_HANDLE, FH_ARRAY, FH_MAPPED, FH_FOREIGN };

struct fh_block {
    struct fh_block *next;
    uint64_t address, asked, bytes, fill; /* fill: of a shared page, what has been handed out */
    int device;
    enum fh_kind kind;
    unsigned references; /* of a handle: references and mappings; of a shared page: blocks */
    bool imported;       /* of a handle: another process holds the memory */
    void *of;            /* its page, its pool, or the handle that is mapped there */
};

struct fh_pool {
    int device;
    uint64_t reserved, used;
};

struct fh_stream { uint64_t tail; };
struct fh_event { uint64_t time; };

static pthread_mutex_t fh_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fh_block *fh_blocks;
static uint64_t fh_next_address = (uint64_t)0x7f00 << 32;
static struct fh_pool fh_default_pools[CARD_DEVICES];
static struct fh_stream fh_default_stream;

/* -- devices: the driver's own variable chooses which of the machine's a process sees, by their numbers ---------------- */

#ifndef FH_VISIBLE
#error "say which variable chooses the devices: #define FH_VISIBLE"
#endif

static inline int fh_visible(int ordinal) {
    const char *at = getenv(FH_VISIBLE);
    if (at == NULL) return ordinal < hf_count("device") ? ordinal : -1;
    for (; *at != '\0'; ordinal--, at += strcspn(at, ","), at += *at == ',') {
        int place = atoi(at);
        if (place < 0 || place >= hf_count("device")) return -1; /* what comes after an unknown device is not seen either */
        if (ordinal == 0) return place;
    }
    return -1;
}

static inline int fh_count(void) {
    int count = 0;
    while (count < CARD_DEVICES && fh_visible(count) >= 0) count++;
    return count;
}

static inline enum card_answer fh_card_take(int device, uint64_t bytes, enum card_kind kind) { return card_take(fh_visible(device), bytes, kind); }
static inline void fh_card_give(int device, uint64_t bytes, enum card_kind kind) { card_give(fh_visible(device), bytes, kind); }
static inline void fh_card_memory(int device, uint64_t *capacity, uint64_t *used) { card_memory(fh_visible(device), capacity, used); }
static inline bool fh_card_run(int device, uint64_t tail, uint64_t ns, uint32_t permille, struct card_kernel *kernel) {
    return card_run(fh_visible(device), tail, ns, permille, kernel);
}

static inline uint64_t fh_round(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) / unit * unit; }

static inline struct fh_block *fh_find(uint64_t address) {
    struct fh_block *block = fh_blocks;
    while (block != NULL && (block->address != address || block->kind == FH_PAGE_OF_SMALL)) block = block->next;
    return block;
}

static inline struct fh_block *fh_add(struct fh_block what) {
    struct fh_block *block = malloc(sizeof *block);
    *block = what;
    if (block->address == 0) {
        block->address = fh_next_address;
        fh_next_address += fh_round(block->bytes + 1, FH_PAGE);
    }
    block->next = fh_blocks;
    fh_blocks = block;
    return block;
}

static inline void fh_drop(struct fh_block *block) {
    struct fh_block **at = &fh_blocks;
    while (*at != block) at = &(*at)->next;
    *at = block->next;
    free(block);
}

static inline enum card_answer fh_small(int device, uint64_t bytes, struct fh_block **out) {
    uint64_t wanted = fh_round(bytes == 0 ? 1 : bytes, FH_UNIT);
    struct fh_block *page = fh_blocks;
    while (page != NULL && (page->kind != FH_PAGE_OF_SMALL || page->device != device || FH_PAGE - page->fill < wanted)) page = page->next;
    if (page == NULL) {
        enum card_answer answer = fh_card_take(device, FH_PAGE, CARD_LINEAR);
        if (answer != CARD_OK) return answer;
        page = fh_add((struct fh_block){.bytes = FH_PAGE - 1, .device = device, .kind = FH_PAGE_OF_SMALL});
    }
    *out = fh_add((struct fh_block){.address = page->address + page->fill, .asked = bytes, .bytes = wanted, .device = device, .kind = FH_SMALL, .of = page});
    page->fill += wanted;
    page->references++;
    return CARD_OK;
}

/* A block of device memory; `kind` FH_LINEAR, FH_HANDLE or FH_ARRAY. */
static inline enum card_answer fh_take(int device, uint64_t bytes, enum fh_kind kind, uint64_t *address) {
    struct fh_block *block = NULL;
    enum card_answer answer;
    pthread_mutex_lock(&fh_lock);
    if (kind == FH_LINEAR && bytes < FH_SMALL_BELOW) {
        answer = fh_small(device, bytes, &block);
    } else {
        uint64_t taken = kind == FH_LINEAR ? fh_round(bytes, FH_PAGE) : bytes;
        answer = fh_card_take(device, taken, kind == FH_HANDLE ? CARD_HANDLE : kind == FH_ARRAY ? CARD_ARRAY : CARD_LINEAR);
        if (answer == CARD_OK) block = fh_add((struct fh_block){.asked = bytes, .bytes = taken, .device = device, .kind = kind, .references = 1});
    }
    if (answer == CARD_OK) *address = block->address;
    pthread_mutex_unlock(&fh_lock);
    return answer;
}

static inline void fh_handle_less(struct fh_block *handle) {
    if (--handle->references > 0) return;
    if (!handle->imported) fh_card_give(handle->device, handle->bytes, CARD_HANDLE);
    fh_drop(handle);
}

static inline bool fh_gone(struct fh_block *block) {
    struct fh_block *page = block->of;
    switch (block->kind) {
    case FH_LINEAR: fh_card_give(block->device, block->bytes, CARD_LINEAR); break;
    case FH_ARRAY: fh_card_give(block->device, block->bytes, CARD_ARRAY); break;
    case FH_FOREIGN: break;
    case FH_POOLED: ((struct fh_pool *)block->of)->used -= block->bytes; break;
    case FH_SMALL:
        if (--page->references == 0) {
            fh_card_give(page->device, FH_PAGE, CARD_LINEAR);
            fh_drop(page);
        }
        break;
    default: return false;
    }
    fh_drop(block);
    return true;
}

/* Free a block, an image or a pool's block; false: there is no such thing. */
static inline bool fh_give(uint64_t address) {
    pthread_mutex_lock(&fh_lock);
    struct fh_block *block = fh_find(address);
    bool done = block != NULL && fh_gone(block);
    pthread_mutex_unlock(&fh_lock);
    return done;
}

static inline uint64_t fh_asked(uint64_t address) {
    pthread_mutex_lock(&fh_lock);
    struct fh_block *block = fh_find(address);
    uint64_t asked = block == NULL ? 0 : block->asked;
    pthread_mutex_unlock(&fh_lock);
    return asked;
}

/* -- handles and mappings ----------------------------------------------------------------------------------------- */

static inline bool fh_release(uint64_t handle) {
    pthread_mutex_lock(&fh_lock);
    struct fh_block *block = fh_find(handle);
    bool done = block != NULL && block->kind == FH_HANDLE;
    if (done) fh_handle_less(block);
    pthread_mutex_unlock(&fh_lock);
    return done;
}

static inline bool fh_map(uint64_t address, uint64_t size, uint64_t handle) {
    pthread_mutex_lock(&fh_lock);
    struct fh_block *block = fh_find(handle);
    bool done = block != NULL && block->kind == FH_HANDLE && fh_find(address) == NULL;
    if (done) {
        block->references++;
        (void)fh_add((struct fh_block){.address = address, .asked = size, .bytes = size, .device = block->device, .kind = FH_MAPPED, .of = block});
    }
    pthread_mutex_unlock(&fh_lock);
    return done;
}

/* `size` 0: the mapping that begins there. */
static inline bool fh_unmap(uint64_t address, uint64_t size) {
    uint64_t end = size == 0 ? address + 1 : address + size;
    bool done = false;
    pthread_mutex_lock(&fh_lock);
    for (struct fh_block *block; address < end && (block = fh_find(address)) != NULL && block->kind == FH_MAPPED; done = true) {
        address += block->bytes;
        fh_handle_less(block->of);
        fh_drop(block);
    }
    pthread_mutex_unlock(&fh_lock);
    return done;
}

static inline uint64_t fh_retain(uint64_t address) {
    uint64_t handle = 0;
    pthread_mutex_lock(&fh_lock);
    struct fh_block *block = fh_find(address);
    if (block != NULL && block->kind == FH_MAPPED) {
        ((struct fh_block *)block->of)->references++;
        handle = ((struct fh_block *)block->of)->address;
    }
    pthread_mutex_unlock(&fh_lock);
    return handle;
}

static inline uint64_t fh_addresses(uint64_t size) {
    pthread_mutex_lock(&fh_lock);
    uint64_t address = fh_next_address;
    fh_next_address += fh_round(size + 1, FH_PAGE);
    pthread_mutex_unlock(&fh_lock);
    return address;
}

/* -- between processes: what is shared is a name for the memory; who made it goes on holding it ----------------------- */

/* Another's memory, `bytes` of it, seen through this process. */
static inline uint64_t fh_foreign(uint64_t bytes, int device) {
    pthread_mutex_lock(&fh_lock);
    uint64_t address = fh_add((struct fh_block){.asked = bytes, .bytes = bytes, .device = device, .kind = FH_FOREIGN})->address;
    pthread_mutex_unlock(&fh_lock);
    return address;
}

/* A file that stands for the handle's memory, as large as that. */
static inline bool fh_export(uint64_t handle, int *file) {
    uint64_t bytes = fh_asked(handle);
    *file = bytes == 0 ? -1 : (int)syscall(SYS_memfd_create, "fake device memory", 0);
    return *file >= 0 && ftruncate(*file, (off_t)bytes) == 0;
}

static inline uint64_t fh_imported(uint64_t bytes, int device) {
    pthread_mutex_lock(&fh_lock);
    uint64_t handle = fh_add((struct fh_block){.asked = bytes, .bytes = bytes, .device = device, .kind = FH_HANDLE, .references = 1, .imported = true})->address;
    pthread_mutex_unlock(&fh_lock);
    return handle;
}

/* A handle of the memory that `file` stands for; 0: it stands for none. */
static inline uint64_t fh_import(int file, int device) {
    struct stat found;
    return fstat(file, &found) == 0 && found.st_size > 0 ? fh_imported((uint64_t)found.st_size, device) : 0;
}

/* -- pools -------------------------------------------------------------------------------------------------------- */

static inline enum card_answer fh_pool_take(struct fh_pool *pool, uint64_t bytes, uint64_t *address) {
    enum card_answer answer = CARD_OK;
    uint64_t taken = fh_round(bytes, FH_UNIT);
    pthread_mutex_lock(&fh_lock);
    if (pool->used + taken > pool->reserved) {
        uint64_t growth = fh_round(pool->used + taken - pool->reserved, FH_PAGE);
        answer = fh_card_take(pool->device, growth, CARD_POOL);
        if (answer == CARD_OK) pool->reserved += growth;
    }
    if (answer == CARD_OK) {
        pool->used += taken;
        *address = fh_add((struct fh_block){.asked = bytes, .bytes = taken, .device = pool->device, .kind = FH_POOLED, .of = pool})->address;
    }
    pthread_mutex_unlock(&fh_lock);
    return answer;
}

static inline void fh_pool_trim(struct fh_pool *pool, uint64_t keep) {
    pthread_mutex_lock(&fh_lock);
    uint64_t least = fh_round(pool->used > keep ? pool->used : keep, FH_PAGE);
    if (pool->reserved > least) {
        fh_card_give(pool->device, pool->reserved - least, CARD_POOL);
        pool->reserved = least;
    }
    pthread_mutex_unlock(&fh_lock);
}

static inline void fh_default_pools_trim(void) {
    for (int device = 0; device < CARD_DEVICES; device++) fh_pool_trim(&fh_default_pools[device], 0);
}

static inline struct fh_pool *fh_default_pool(int device) {
    fh_default_pools[device].device = device;
    return &fh_default_pools[device];
}

/* All that this process holds of the device. */
static inline void fh_reset(int device) {
    pthread_mutex_lock(&fh_lock);
    for (bool again = true; again;) {
        again = false;
        for (struct fh_block *block = fh_blocks; block != NULL && !again; block = block->next) {
            if (block->device != device || block->kind == FH_PAGE_OF_SMALL) continue;
            if (block->kind == FH_MAPPED) {
                fh_handle_less(block->of);
                fh_drop(block);
            } else if (block->kind == FH_HANDLE) {
                block->references = 1;
                fh_handle_less(block);
            } else {
                (void)fh_gone(block);
            }
            again = true;
        }
    }
    pthread_mutex_unlock(&fh_lock);
    fh_pool_trim(&fh_default_pools[device], 0);
}

/* -- time --------------------------------------------------------------------------------------------------------- */

static inline uint64_t fh_kernel_ns(void) {
    const char *text = getenv("HAMI_FAKE_KERNEL_NS");
    return text == NULL ? 1000000u : strtoull(text, NULL, 10);
}

static inline bool fh_run(int device, struct fh_stream *stream) {
    struct card_kernel kernel;
    stream = stream == NULL ? &fh_default_stream : stream;
    bool ran = fh_card_run(device, __atomic_load_n(&stream->tail, __ATOMIC_RELAXED), fh_kernel_ns(), 1000, &kernel);
    if (ran) __atomic_store_n(&stream->tail, kernel.finish, __ATOMIC_RELAXED);
    return ran;
}

static inline void fh_wait(struct fh_stream *stream) {
    card_wait(__atomic_load_n(&(stream == NULL ? &fh_default_stream : stream)->tail, __ATOMIC_RELAXED));
    fh_default_pools_trim();
}

static inline void fh_record(int device, struct fh_event *event, struct fh_stream *stream) {
    event->time = card_mark(fh_visible(device), __atomic_load_n(&(stream == NULL ? &fh_default_stream : stream)->tail, __ATOMIC_RELAXED));
}

#endif
