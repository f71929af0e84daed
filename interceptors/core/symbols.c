/* SPDX-License-Identifier: Apache-2.0 */
/*
 * symbols.c: from a name or an address to a hook, and from a hook to the driver's own function.
 *
 * A driver is found by its library's name among the loaded libraries of our namespace, never by walking on from ourselves: what
 * stands after us may be another interposer. Once an address of a driver has been kept, the driver stays loaded.
 */
#include <dlfcn.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>

#include "objects.h"
#include "resolve.h"

#define LIBRARIES_MOST 8

/* The driver's addresses of the hooked rows, sorted; made once, when a driver's resolver first answers. */
struct place {
    void *address;
    const struct hami_symbol *symbol;
};
struct places {
    size_t count;
    struct place rows[];
};

static _Atomic(void *) handles[LIBRARIES_MOST];
static _Atomic(struct places *) places[LIBRARIES_MOST];
static _Atomic uint64_t unknown_waiting; /* counted before this process had a slot */
static _Atomic uint64_t tables_waiting;

/* -- counting ----------------------------------------------------------------------------------------------------- */

/* Into the slot if there is one; a program is not made to join for having looked up a name. */
static void count_into(_Atomic uint64_t *waiting, bool unknown) {
    atomic_fetch_add_explicit(waiting, 1, memory_order_relaxed);
    struct hami_slot *slot = hami_slot_if_joined();
    if (slot != NULL) {
        uint64_t counted = atomic_exchange_explicit(waiting, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(unknown ? &slot->unknown_symbols : &slot->private_tables, counted, memory_order_relaxed);
    }
}

void hami_count_unknown(void) {
    count_into(&unknown_waiting, true);
}

void hami_count_private_table(void) {
    count_into(&tables_waiting, false);
}

/* -- names -------------------------------------------------------------------------------------------------------- */

const struct hami_symbol *hami_symbol_find(const struct hami_library *library, const char *name) {
    size_t low = 0;
    size_t high = library->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, library->symbols[middle].name);
        if (order == 0) {
            return &library->symbols[middle];
        }
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

static size_t first_not_before(const struct hami_library *library, const char *name) {
    size_t low = 0;
    size_t high = library->known_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(library->known[middle], name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool hami_symbol_known(const struct hami_library *library, const char *name) {
    size_t at = first_not_before(library, name);
    return at < library->known_count && strcmp(library->known[at], name) == 0;
}

/* "", "_v2", "_ptsz", "_v3_ptds", …: what a driver's resolver may add to the name it was asked for. */
static bool is_variant_suffix(const char *rest) {
    if (rest[0] == '_' && rest[1] == 'v' && rest[2] >= '0' && rest[2] <= '9') {
        rest += 3;
        while (*rest >= '0' && *rest <= '9') {
            rest++;
        }
    }
    return *rest == 0 || strcmp(rest, "_ptsz") == 0 || strcmp(rest, "_ptds") == 0 || strcmp(rest, "_spt") == 0;
}

/* How many known names `name` may stand for; the last one in `only`. */
static size_t variants(const struct hami_library *library, const char *name, const char **only) {
    size_t length = strlen(name);
    size_t found = 0;
    for (size_t i = first_not_before(library, name); i < library->known_count && strncmp(library->known[i], name, length) == 0; i++) {
        if (is_variant_suffix(library->known[i] + length)) {
            *only = library->known[i];
            found++;
        }
    }
    return found;
}

/* -- drivers ------------------------------------------------------------------------------------------------------ */

static size_t number_of(const struct hami_library *library) {
    size_t number = 0;
    while (hami_libraries[number] != NULL && hami_libraries[number] != library && number < LIBRARIES_MOST) {
        number++;
    }
    return number;
}

/* By its own name, else by those that its releases have. */
static void *load_driver(const struct hami_library *library, void *(*open)(const char *, int)) {
    void *handle = open(library->soname, RTLD_NOW | RTLD_LOCAL);
    for (const char *const *name = library->fallbacks; handle == NULL && name != NULL && *name != NULL; name++) {
        handle = open(*name, RTLD_NOW | RTLD_LOCAL);
    }
    return handle;
}

/* A handle that is never closed. With `load`, the driver is loaded if it is not. */
static void *driver(const struct hami_library *library, bool load) {
    size_t number = number_of(library);
    void *handle = number < LIBRARIES_MOST ? atomic_load_explicit(&handles[number], memory_order_acquire) : NULL;
    void *(*open)(const char *, int) = handle == NULL ? hami_true_dlopen() : NULL;
    if (handle != NULL || open == NULL) {
        return handle;
    }
    char path[PATH_MAX];
    if (hami_object_loaded(library->soname, path, sizeof path)) {
        handle = open(path, RTLD_NOW | RTLD_NOLOAD);
    }
    if (handle == NULL && load) {
        handle = load_driver(library, open);
    }
    if (handle == NULL) {
        dlerror(); /* the failure was ours, not the program's */
    } else if (number < LIBRARIES_MOST) {
        atomic_store_explicit(&handles[number], handle, memory_order_release); /* two threads at once: one reference more, the same handle */
    }
    return handle;
}

static void *driver_function(const struct hami_library *library, const char *name, bool load) {
    HAMI_KEEP_ERRNO;
    void *(*look)(void *, const char *) = hami_true_dlsym();
    void *handle = look == NULL ? NULL : driver(library, load);
    void *address = handle == NULL ? NULL : look(handle, name);
    if (handle != NULL && address == NULL) {
        dlerror();
    }
    return address;
}

void *hami_loaded_driver_symbol(const struct hami_library *library, const char *name) {
    return driver_function(library, name, false);
}

void *hami_driver_symbol(const struct hami_library *library, const char *name) {
    return driver_function(library, name, true);
}

void *hami_real(const struct hami_library *library, const struct hami_symbol *symbol) {
    void *real = atomic_load_explicit(symbol->real, memory_order_acquire);
    if (HAMI_LIKELY(real != NULL)) {
        return real;
    }
    real = driver_function(library, symbol->name, true);
    if (real == NULL || real == symbol->hook) {
        return NULL;
    }
    atomic_store_explicit(symbol->real, real, memory_order_release);
    return real;
}

void hami_real_seen(const struct hami_library *library, const struct hami_symbol *symbol, void *address) {
    if (atomic_load_explicit(symbol->real, memory_order_acquire) == NULL && address != symbol->hook && driver(library, false) != NULL) {
        atomic_store_explicit(symbol->real, address, memory_order_release);
    }
}

/* -- addresses ---------------------------------------------------------------------------------------------------- */

/* Shell's sort: qsort may call malloc. */
static void sort(struct place *rows, size_t count) {
    static const size_t gaps[] = {301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof gaps[0]; g++) {
        for (size_t i = gaps[g]; i < count; i++) {
            struct place row = rows[i];
            size_t j = i;
            for (; j >= gaps[g] && (uintptr_t)rows[j - gaps[g]].address > (uintptr_t)row.address; j -= gaps[g]) {
                rows[j] = rows[j - gaps[g]];
            }
            rows[j] = row;
        }
    }
}

static struct places *make_places(const struct hami_library *library) {
    HAMI_KEEP_ERRNO;
    size_t size = sizeof(struct places) + library->count * sizeof(struct place);
    struct places *made = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
        return NULL;
    }
    for (size_t i = 0; i < library->count; i++) {
        void *address = hami_real(library, &library->symbols[i]);
        if (address != NULL) {
            made->rows[made->count++] = (struct place){address, &library->symbols[i]};
        }
    }
    if (made->count == 0) {
        munmap(made, size); /* the driver is not there yet: to be made when it is */
        return NULL;
    }
    sort(made->rows, made->count);
    return made;
}

static struct places *places_of(const struct hami_library *library) {
    size_t number = number_of(library);
    if (number >= LIBRARIES_MOST) {
        return NULL;
    }
    struct places *there = atomic_load_explicit(&places[number], memory_order_acquire);
    if (there != NULL) {
        return there;
    }
    struct places *made = make_places(library);
    if (made != NULL && !atomic_compare_exchange_strong(&places[number], &there, made)) {
        munmap(made, sizeof *made + library->count * sizeof(struct place)); /* another thread was first */
        return there;
    }
    return made;
}

/* Several rows may share one address in the driver: the row that was asked for by name, else one that is its variant, else the first. */
static const struct hami_symbol *best_of(const struct places *table, size_t at, const char *name) {
    const struct hami_symbol *best = NULL;
    size_t length = strlen(name);
    for (size_t i = at; i < table->count && table->rows[i].address == table->rows[at].address; i++) {
        const struct hami_symbol *symbol = table->rows[i].symbol;
        if (strcmp(symbol->name, name) == 0) {
            return symbol;
        }
        if (best == NULL || (strncmp(best->name, name, length) != 0 && strncmp(symbol->name, name, length) == 0)) {
            best = symbol;
        }
    }
    return best;
}

static const struct hami_symbol *by_address(const struct hami_library *library, const char *name, void *address) {
    const struct places *table = places_of(library);
    size_t low = 0;
    size_t high = table == NULL ? 0 : table->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)table->rows[middle].address < (uintptr_t)address) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return table != NULL && low < table->count && table->rows[low].address == address ? best_of(table, low, name) : NULL;
}

/*
 * The address decides: the driver has chosen version and flavour. One that is none of the exported functions' (a driver may
 * answer with an inner entry) is taken by name if the name can only mean one function; otherwise it is left alone, since a
 * hook of another version would read the arguments wrongly.
 */
void *hami_hook_for(const struct hami_library *library, const char *name, void *address) {
    if (address == NULL || name == NULL) {
        return address;
    }
    const struct hami_symbol *symbol = by_address(library, name, address);
    if (symbol == NULL) {
        const char *only = name;
        size_t meant = variants(library, name, &only);
        if (meant == 0) {
            hami_count_unknown();
        }
        symbol = meant == 1 ? hami_symbol_find(library, only) : NULL;
    }
    return symbol == NULL || (symbol->flags & HAMI_SYMBOL_RESOLVER) != 0 ? address : symbol->hook;
}
