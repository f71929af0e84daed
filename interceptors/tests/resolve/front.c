/* SPDX-License-Identifier: Apache-2.0 */
/* front.c: the front end for the made-up driver, in the shape that the generator gives one. toyGone is hooked and not in the driver. */
#include "internal.h"

#define HOOK(name) \
    static _Atomic(void *) real_##name; \
    extern const struct hami_symbol symbol_##name; \
    HAMI_EXPORT int name(int value) { \
        void *real = hami_real(&hami_library_toy, &symbol_##name); \
        return real == NULL ? -1000 : ((int (*)(int))real)(value) + 1000; \
    } \
    extern __typeof__(name) hook_##name __attribute__((alias(#name), visibility("hidden"))); \
    const struct hami_symbol symbol_##name HAMI_HIDDEN = {#name, (void *)hook_##name, &real_##name, 0};

extern const struct hami_library hami_library_toy;
HOOK(toyAlloc)
HOOK(toyAlloc_v2)
HOOK(toyFree)
HOOK(toyGone)
HOOK(toyLaunch)

static _Atomic(void *) real_toyGetProc;
extern const struct hami_symbol symbol_toyGetProc;
HAMI_EXPORT void *toyGetProc(const char *name, int version) {
    void *real = hami_real(&hami_library_toy, &symbol_toyGetProc);
    return real == NULL ? NULL : hami_hook_for(&hami_library_toy, name, ((void *(*)(const char *, int))real)(name, version));
}
extern __typeof__(toyGetProc) hook_toyGetProc __attribute__((alias("toyGetProc"), visibility("hidden")));
const struct hami_symbol symbol_toyGetProc HAMI_HIDDEN = {"toyGetProc", (void *)hook_toyGetProc, &real_toyGetProc, 0};

#define ROW(name) {#name, (void *)hook_##name, &real_##name, 0}
static const struct hami_symbol symbols[] = {ROW(toyAlloc), ROW(toyAlloc_v2), ROW(toyFree), ROW(toyGetProc), ROW(toyGone), ROW(toyLaunch)};
static const char *const known[] = {"toyAlloc", "toyAlloc_v2", "toyFree", "toyGetProc", "toyGone", "toyLaunch", "toyPlain", "toySelf"};
static const char *const fallbacks[] = {"libtoyacc.so.9", "libtoyacc.so.2", NULL};
const struct hami_library hami_library_toy = {
    "toy", "libtoyacc.so.1", "toy", symbols, sizeof symbols / sizeof *symbols, known, sizeof known / sizeof *known, fallbacks,
};
const struct hami_library *const hami_libraries[] = {&hami_library_toy, NULL};

void stub_begin(uint32_t devices, uint32_t milli, uint32_t burst_us);
uint64_t stub_unknown(void);
HAMI_EXPORT unsigned long toy_test_unknown(int begin) {
    if (begin != 0) {
        stub_begin(1, 0, 0);
    }
    hami_slot();
    return (unsigned long)stub_unknown();
}
HAMI_EXPORT void *toy_test_plain(void) {
    return hami_driver_symbol(&hami_library_toy, "toyPlain");
}
