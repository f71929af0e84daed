/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.c: what dlsym and dlvsym answer once we are loaded. The doors themselves are in dlsym_<machine>.S; they are
 * exported without a version, which a preloaded object may: references to any version of them are bound here.
 *
 * A name that no library of ours can have (the first letters tell) goes on to the real function at once, by a jump. The
 * driver's own look-ups find the driver's own functions. For the rest:
 *
 *   an explicit handle   the real function answers first. Nothing: nothing. The driver's function: our hook. Another
 *                        library's function of that name: that one; it reaches the driver through us.
 *   RTLD_DEFAULT, _NEXT  our own export lies in every caller's way, or in none's (a plugin's scope). So what is asked is
 *                        whether the driver has the function, after us or loaded anywhere: our hook, or nothing, as if we
 *                        were not there. It is the hook for callers after us as well: we reach the driver by its SONAME and
 *                        not by going on from ourselves, so that a chain of interposers cannot come round in a circle.
 *
 * Nothing is remembered about callers, so that a look-up repeated is a look-up answered again.
 *
 * What does not come by here: a library opened with RTLD_DEEPBIND (its dlsym is its own libc's, and with an explicit handle
 * it gets the driver's functions; RTLD_DEFAULT still finds our exports), another namespace (dlmopen: nothing is preloaded
 * there), a dlsym that was itself looked up in libc's handle, and a program that reads the driver's symbol table. The agent
 * finds those by the driver's own figures.
 */
#include <dlfcn.h>
#include <string.h>

#include "objects.h"
#include "resolve.h"

/* Read by the doors: the value in the first result register, where to go on in the second. */
struct answer {
    void *value;
    void *onward;
};
HAMI_HIDDEN struct answer hami_resolve_dlsym(void *handle, const char *name, const void *caller);
HAMI_HIDDEN struct answer hami_resolve_dlvsym(void *handle, const char *name, const char *version, const void *caller);

struct question {
    void *handle;
    const char *name;
    const char *version; /* NULL: dlsym */
    const void *caller;
    void *real; /* the real dlsym or dlvsym */
};

/* -- the real ones ------------------------------------------------------------------------------------------------ */

static const char *const c_library[] = {"libc.so.6", "libdl.so.2", NULL};
static _Atomic(void *) true_dlsym;
static _Atomic(void *) true_dlvsym;
static _Atomic(void *) true_dlopen;

static void *found_once(_Atomic(void *) *kept, const char *name) {
    void *found = atomic_load_explicit(kept, memory_order_acquire);
    if (HAMI_UNLIKELY(found == NULL)) {
        found = hami_elf_function(c_library, name);
        atomic_store_explicit(kept, found, memory_order_release);
    }
    return found;
}

void *(*hami_true_dlsym(void))(void *handle, const char *name) {
    return (void *(*)(void *, const char *))found_once(&true_dlsym, "dlsym");
}

void *(*hami_true_dlvsym(void))(void *handle, const char *name, const char *version) {
    return (void *(*)(void *, const char *, const char *))found_once(&true_dlvsym, "dlvsym");
}

void *(*hami_true_dlopen(void))(const char *file, int mode) {
    return (void *(*)(const char *, int))found_once(&true_dlopen, "dlopen");
}

static void *ask(const struct question *question, void *handle) {
    if (question->version == NULL) {
        return ((void *(*)(void *, const char *))question->real)(handle, question->name);
    }
    return ((void *(*)(void *, const char *, const char *))question->real)(handle, question->name, question->version);
}

/* -- whose is it -------------------------------------------------------------------------------------------------- */

static const struct hami_library *library_of(const char *name) {
    for (const struct hami_library *const *library = hami_libraries; *library != NULL; library++) {
        const char *prefix = (*library)->prefix;
        const char *letter = name;
        while (*prefix != 0 && *prefix == *letter) {
            prefix++;
            letter++;
        }
        if (*prefix == 0) {
            return *library;
        }
    }
    return NULL;
}

/* Two libraries may share a prefix: the one that has a row for the name, else NULL. */
static const struct hami_symbol *row_of(const char *name, const struct hami_library **library) {
    for (const struct hami_library *const *each = hami_libraries; *each != NULL; each++) {
        const struct hami_symbol *symbol = hami_symbol_find(*each, name);
        if (symbol != NULL) {
            *library = *each;
            return symbol;
        }
    }
    return NULL;
}

static bool lies_in(const void *address, const struct hami_library *library) {
    return hami_object_is(address, library->soname);
}

/* -- answers ------------------------------------------------------------------------------------------------------ */

static struct answer go_on(const struct question *question) {
    return (struct answer){NULL, question->real};
}

static struct answer answer(void *value) {
    return (struct answer){value, NULL};
}

/* What there would be without us: after us in the global scope, or, for a plugin that brought the driver along, loaded somewhere. */
static struct answer without_us(const struct question *question, const struct hami_library *library, const struct hami_symbol *symbol) {
    void *loaded = question->version == NULL ? hami_loaded_driver_symbol(library, question->name) : NULL;
    if (loaded != NULL) {
        hami_real_seen(library, symbol, loaded);
        return answer(symbol->hook);
    }
    void *next = ask(question, RTLD_NEXT); /* asked from here, it is looked for after us; not found, the program's dlerror says so */
    if (next != NULL && lies_in(next, library)) {
        hami_real_seen(library, symbol, next);
        return answer(symbol->hook);
    }
    return answer(next);
}

static struct answer by_handle(const struct question *question, const struct hami_library *library, const struct hami_symbol *symbol) {
    void *found = ask(question, question->handle);
    if (found == NULL) {
        return answer(NULL);
    }
    if (found == symbol->hook) { /* the program's own handle, dlopen(NULL): its scope begins before the driver, with us */
        return without_us(question, library, symbol);
    }
    if (!lies_in(found, library)) {
        return answer(found);
    }
    hami_real_seen(library, symbol, found);
    return answer(symbol->hook);
}

/* A name that begins like the driver's and has no hook. */
static struct answer unhooked(const struct question *question, const struct hami_library *library) {
    bool pseudo = question->handle == RTLD_DEFAULT || question->handle == RTLD_NEXT;
    if (pseudo || hami_symbol_known(library, question->name)) {
        return go_on(question);
    }
    void *found = ask(question, question->handle);
    if (found != NULL && lies_in(found, library)) {
        hami_count_unknown();
    }
    return answer(found);
}

static struct answer resolve(const struct question *question, const struct hami_library *library) {
    HAMI_KEEP_ERRNO;
    const struct hami_symbol *symbol = row_of(question->name, &library);
    if (symbol == NULL) {
        return unhooked(question, library);
    }
    bool pseudo = question->handle == RTLD_DEFAULT || question->handle == RTLD_NEXT;
    if ((symbol->flags & HAMI_SYMBOL_RESOLVER) != 0) {
        return go_on(question);
    }
    if (lies_in(question->caller, library)) {
        void *own = pseudo && question->version == NULL ? hami_loaded_driver_symbol(library, question->name) : NULL;
        return own != NULL ? answer(own) : go_on(question);
    }
    return pseudo ? without_us(question, library, symbol) : by_handle(question, library, symbol);
}

struct answer hami_resolve_dlsym(void *handle, const char *name, const void *caller) {
    struct question question = {handle, name, NULL, caller, (void *)hami_true_dlsym()};
    const struct hami_library *library = name == NULL ? NULL : library_of(name);
    if (HAMI_LIKELY(library == NULL) || question.real == NULL) {
        return go_on(&question);
    }
    return resolve(&question, library);
}

struct answer hami_resolve_dlvsym(void *handle, const char *name, const char *version, const void *caller) {
    struct question question = {handle, name, version, caller, (void *)hami_true_dlvsym()};
    const struct hami_library *library = name == NULL || version == NULL ? NULL : library_of(name);
    if (HAMI_LIKELY(library == NULL) || question.real == NULL) {
        return go_on(&question);
    }
    return resolve(&question, library);
}
