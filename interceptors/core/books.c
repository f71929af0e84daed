/* SPDX-License-Identifier: Apache-2.0 */
/*
 * books.c: which hold belongs to which pointer or handle. Local to this process.
 *
 * A book is 64 shards, each an open-addressing table of a power of two of cells behind a lock of its own. A cell that is
 * taken out is filled by moving its followers back, so that there are no tombstones and a book that has seen a million
 * allocations is as quick as a new one.
 *
 * Tables come from mmap and not from malloc: a hook may be running inside an allocator that a program has put in malloc's
 * place and that itself asks the driver for memory, and a shard's lock must never be held over a call into such code. A
 * table doubles when it is three quarters full, which an entry meets once in its shard's life; it never shrinks.
 *
 * A forked child forgets all books: what stands there is charged to the parent's slot, and the child cannot use its parent's
 * device memory. Its frees of such pointers go straight to the driver.
 */
#include <sys/mman.h>

#include "books.h"

#define FIRST_CELLS 64
#define PLUCKED_AT_ONCE 64

#define MOST_REFERENCES 0xFFFFFFu

/* What hami_entry says, in 32 bytes, so that no cell lies across two cache lines. `used`: 0 a free cell, else the device + 2. */
struct cell {
    uint64_t key;
    uint64_t bytes;
    uint64_t tag;
    uint32_t flags;
    uint32_t references : 24;
    uint32_t used : 8;
};

/* One mapping holds the table and its size, so that a single pointer says all: a child may find it at any moment of a change. */
struct table {
    size_t mapped;
    size_t mask;
    size_t count;
    struct cell cells[] __attribute__((aligned(64)));
};

struct shard {
    _Atomic uint32_t lock;
    struct table *table;
} __attribute__((aligned(64)));

static struct shard books[HAMI_BOOKS][HAMI_BOOK_SHARDS];
static _Atomic bool forks_watched;

static void forget_in_child(void) {
    for (size_t book = 0; book < HAMI_BOOKS; book++) {
        for (size_t i = 0; i < HAMI_BOOK_SHARDS; i++) {
            atomic_store_explicit(&books[book][i].lock, 0, memory_order_relaxed);
            books[book][i].table = NULL; /* left mapped: pages that nobody touches again cost a child nothing */
        }
    }
}

static void watch_forks(void) {
    if (HAMI_UNLIKELY(!atomic_load_explicit(&forks_watched, memory_order_relaxed))) {
        hami_process(); /* a fork is only noticed from then on */
        hami_on_child(forget_in_child);
        atomic_store_explicit(&forks_watched, true, memory_order_relaxed);
    }
}

static struct shard *shard_of(enum hami_book book, uint64_t hash) {
    return &books[book][hash >> 58];
}

static struct shard *locked_shard(enum hami_book book, uint64_t hash) {
    struct shard *shard = shard_of(book, hash);
    hami_local_lock(&shard->lock);
    return shard;
}

static struct cell cell_of(const struct hami_entry *entry) {
    return (struct cell){
        .key = entry->key, .bytes = entry->hold.bytes, .tag = entry->tag, .flags = entry->hold.flags,
        .references = entry->references < MOST_REFERENCES ? entry->references : MOST_REFERENCES, .used = (uint8_t)(entry->hold.device + 2),
    };
}

static void read_cell(const struct cell *cell, struct hami_entry *entry) {
    *entry = (struct hami_entry){
        .key = cell->key, .hold = {.device = (int)cell->used - 2, .bytes = cell->bytes, .flags = cell->flags}, .tag = cell->tag,
        .references = cell->references,
    };
}

static struct table *new_table(size_t cells) {
    size_t size = sizeof(struct table) + cells * sizeof(struct cell);
    struct table *table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (table == MAP_FAILED) {
        return NULL;
    }
    table->mapped = size;
    table->mask = cells - 1;
    return table;
}

/* The cell of that key, or the free cell where it would go. */
static struct cell *seek(struct table *table, uint64_t key, uint64_t hash) {
    size_t i = hash & table->mask;
    while (table->cells[i].used != 0 && table->cells[i].key != key) {
        i = (i + 1) & table->mask;
    }
    return &table->cells[i];
}

static struct cell *find(struct shard *shard, uint64_t key, uint64_t hash) {
    if (shard->table == NULL) {
        return NULL;
    }
    struct cell *cell = seek(shard->table, key, hash);
    return cell->used != 0 ? cell : NULL;
}

static bool grow(struct shard *shard) {
    HAMI_KEEP_ERRNO;
    struct table *old = shard->table;
    struct table *wider = new_table(old == NULL ? FIRST_CELLS : (old->mask + 1) * 2);
    if (wider == NULL) {
        return false;
    }
    if (old != NULL) {
        for (size_t i = 0; i <= old->mask; i++) {
            if (old->cells[i].used != 0) {
                *seek(wider, old->cells[i].key, hami_mix(old->cells[i].key)) = old->cells[i];
            }
        }
        wider->count = old->count;
    }
    shard->table = wider;
    if (old != NULL) {
        munmap(old, old->mapped);
    }
    return true;
}

/* Room for one more. A table that cannot grow is filled to its last cell but one: a free cell ends every search. */
static bool make_room(struct shard *shard) {
    struct table *table = shard->table;
    if (HAMI_LIKELY(table != NULL && table->count < (table->mask + 1) / 4 * 3)) {
        return true;
    }
    return grow(shard) || (table != NULL && table->count < table->mask);
}

/* Whoever stands behind the hole and would have been put there, or before it, moves into it; then its place is the hole. */
static void take_out(struct table *table, struct cell *cell) {
    size_t hole = (size_t)(cell - table->cells);
    size_t i = hole;
    for (;;) {
        i = (i + 1) & table->mask;
        if (table->cells[i].used == 0) {
            break;
        }
        size_t home = hami_mix(table->cells[i].key) & table->mask;
        if (((i - home) & table->mask) >= ((i - hole) & table->mask)) {
            table->cells[hole] = table->cells[i];
            hole = i;
        }
    }
    table->cells[hole].used = 0;
    table->count--;
}

static bool put_locked(struct shard *shard, const struct hami_entry *entry, uint64_t hash) {
    if (!make_room(shard)) {
        return false;
    }
    *seek(shard->table, entry->key, hash) = cell_of(entry);
    shard->table->count++;
    return true;
}

static void no_memory(void) {
    hami_say_once("book", "no memory for the record of device allocations; they are refused, or stay charged until the process ends");
}

bool hami_book_put(enum hami_book book, const struct hami_entry *entry, struct hami_entry *replaced) {
    watch_forks();
    *replaced = (struct hami_entry){.hold = {.device = HAMI_NO_DEVICE}};
    uint64_t hash = hami_mix(entry->key);
    struct shard *shard = locked_shard(book, hash);
    struct cell *there = find(shard, entry->key, hash);
    bool done = true;
    if (HAMI_UNLIKELY(there != NULL)) {
        read_cell(there, replaced);
        *there = cell_of(entry);
    } else {
        done = put_locked(shard, entry, hash);
    }
    hami_local_unlock(&shard->lock);
    if (HAMI_UNLIKELY(!done)) {
        no_memory();
    }
    return done;
}

bool hami_book_refer_or_put(enum hami_book book, const struct hami_entry *entry, bool *put) {
    watch_forks();
    uint64_t hash = hami_mix(entry->key);
    struct shard *shard = locked_shard(book, hash);
    struct cell *there = find(shard, entry->key, hash);
    bool done = true;
    *put = there == NULL;
    if (there != NULL) {
        there->references += there->references < MOST_REFERENCES;
    } else {
        done = put_locked(shard, entry, hash);
    }
    hami_local_unlock(&shard->lock);
    if (HAMI_UNLIKELY(!done)) {
        no_memory();
    }
    return done;
}

/* Without memory for the book nothing may be kept: HAMI_REFUSED, the hold is the caller's still, who undoes the allocation. */
enum hami_verdict hami_book_keep(enum hami_book book, uint64_t key, struct hami_hold *hold, uint64_t actual, uint64_t tag) {
    enum hami_verdict verdict = hami_settle(hold, actual);
    if (HAMI_UNLIKELY(verdict != HAMI_OK)) {
        return verdict;
    }
    struct hami_entry replaced;
    if (HAMI_UNLIKELY(!hami_book_put(book, &(struct hami_entry){.key = key, .hold = *hold, .tag = tag, .references = 1}, &replaced))) {
        return HAMI_REFUSED;
    }
    hami_hold_clear(hold);
    if (HAMI_UNLIKELY(replaced.hold.bytes != 0)) {
        hami_give_back(&replaced.hold); /* the driver has handed the address out again: the old allocation went unseen */
    }
    return HAMI_OK;
}

bool hami_book_take(enum hami_book book, uint64_t key, struct hami_entry *entry) {
    uint64_t hash = hami_mix(key);
    struct shard *shard = locked_shard(book, hash);
    struct cell *there = find(shard, key, hash);
    if (there != NULL) {
        read_cell(there, entry);
        take_out(shard->table, there);
    }
    hami_local_unlock(&shard->lock);
    return there != NULL;
}

/* An entry that was taken with its last reference goes back with that reference. */
void hami_book_return(enum hami_book book, const struct hami_entry *entry) {
    struct hami_entry again = *entry;
    struct hami_entry replaced;
    if (again.references == 0) {
        again.references = 1;
    }
    if (hami_book_put(book, &again, &replaced) && replaced.hold.bytes != 0) {
        hami_give_back(&replaced.hold);
    }
}

bool hami_book_find(enum hami_book book, uint64_t key, struct hami_entry *entry) {
    uint64_t hash = hami_mix(key);
    struct shard *shard = locked_shard(book, hash);
    struct cell *there = find(shard, key, hash);
    if (there != NULL) {
        read_cell(there, entry);
    }
    hami_local_unlock(&shard->lock);
    return there != NULL;
}

int64_t hami_book_refer(enum hami_book book, uint64_t key, int32_t change, struct hami_entry *entry) {
    uint64_t hash = hami_mix(key);
    struct shard *shard = locked_shard(book, hash);
    struct cell *there = find(shard, key, hash);
    int64_t left = -1;
    if (there != NULL) {
        left = (int64_t)there->references + change;
        left = left < 0 ? 0 : left > MOST_REFERENCES ? MOST_REFERENCES : left;
        there->references = (uint32_t)left & MOST_REFERENCES;
        read_cell(there, entry);
        if (left == 0) {
            take_out(shard->table, there);
        }
    }
    hami_local_unlock(&shard->lock);
    return left;
}

size_t hami_book_pluck(enum hami_book book, size_t number, bool (*match)(const struct hami_entry *entry, void *context), void *context,
                       struct hami_entry *entries, size_t most) {
    struct shard *shard = &books[book][number];
    size_t found = 0;
    hami_local_lock(&shard->lock);
    struct table *table = shard->table;
    for (size_t i = 0; table != NULL && i <= table->mask && found < most;) {
        if (table->cells[i].used != 0) {
            read_cell(&table->cells[i], &entries[found]);
            if (match(&entries[found], context)) {
                take_out(table, &table->cells[i]); /* a follower may stand here now: look again */
                found++;
                continue;
            }
        }
        i++;
    }
    hami_local_unlock(&shard->lock);
    return found;
}

size_t hami_book_sweep(enum hami_book book, bool (*match)(const struct hami_entry *entry, void *context), void *context) {
    struct hami_entry plucked[PLUCKED_AT_ONCE];
    size_t total = 0;
    for (size_t shard = 0; shard < HAMI_BOOK_SHARDS; shard++) {
        size_t found;
        do {
            found = hami_book_pluck(book, shard, match, context, plucked, PLUCKED_AT_ONCE);
            for (size_t i = 0; i < found; i++) {
                hami_give_back(&plucked[i].hold); /* with the shard open: the shared mutex is never taken inside a lock of ours */
            }
            total += found;
        } while (found == PLUCKED_AT_ONCE);
    }
    return total;
}
