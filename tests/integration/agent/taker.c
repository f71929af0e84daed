/* SPDX-License-Identifier: Apache-2.0 */
/*
 * taker.c: takes device memory in blocks until it is refused, says how far it came, and holds it. One source, three tenants:
 *
 *     dynamic program    finds the CUDA driver as programs do, by dlopen and dlsym: the library under test stands before it
 *     shared object      the same as `take`, for tests that load it with RTLD_DEEPBIND or into a namespace of its own
 *     -DDIRECT, static   goes to the fake device itself (hami_card.h), as a static binary or a driver backend of one's own does
 *
 * taker BLOCKS MIB [hold]: prints {"blocks": N, "code": C}; with `hold` it stays until its stdin ends, taking a further block per line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef DIRECT
#include "hami_card.h"

static int begin(void) { return card_load("HAMI_FAKE_NVIDIA"); }
static int block(unsigned long long bytes) { return (int)card_take(0, bytes, CARD_LINEAR); }
#else
#include <dlfcn.h>

static int (*allocate)(unsigned long long *, size_t);

static int begin(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) return -1;
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(driver, "cuInit");
    int (*retain)(void **, int) = (int (*)(void **, int))dlsym(driver, "cuDevicePrimaryCtxRetain");
    int (*enter)(void *) = (int (*)(void *))dlsym(driver, "cuCtxSetCurrent");
    allocate = (int (*)(unsigned long long *, size_t))dlsym(driver, "cuMemAlloc_v2");
    void *context = NULL;
    int code = init(0);
    if (code == 0) code = retain(&context, 0);
    return code != 0 ? code : enter(context);
}

static int block(unsigned long long bytes) {
    unsigned long long pointer;
    return allocate(&pointer, bytes);
}
#endif

int take(int most, int mib) {
    int blocks = 0, code = begin();
    while (code == 0 && blocks < most && (code = block((unsigned long long)mib << 20)) == 0) blocks++;
    printf("{\"blocks\": %d, \"code\": %d}\n", blocks, code);
    fflush(stdout);
    return code;
}

int main(int argc, char **argv) {
    char line[16];
    if (argc < 3) return 2;
    take(atoi(argv[1]), atoi(argv[2]));
    while (argc > 3 && fgets(line, sizeof line, stdin) != NULL) {
        printf("{\"code\": %d}\n", block((unsigned long long)atoi(argv[2]) << 20));
        fflush(stdout);
    }
    return 0;
}
