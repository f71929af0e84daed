/* SPDX-License-Identifier: Apache-2.0 */
/* driver.c: a made-up driver, libtoyacc.so.1. Its functions answer numbers below 100; a hook adds 1000. */
#include <stdio.h>
#include <string.h>

int toyAlloc(int value) { return value + 1; }
int toyAlloc_v2(int value) { return value + 2; }
int toyFree(int value) { return value + 3; }
int toyPlain(int value) { return value + 4; }
int toySecret(int value) { return value + 5; } /* a function that the table does not know */
static int inner_launch(int value) { return value + 6; }
int toyLaunch(int value) { return value + 6; }

/* The driver's own resolver: version 2 of toyAlloc, an inner entry for toyLaunch. */
void *toyGetProc(const char *name, int version) {
    if (strcmp(name, "toyAlloc") == 0) {
        return version >= 2 ? (void *)toyAlloc_v2 : (void *)toyAlloc;
    }
    if (strcmp(name, "toyFree") == 0) {
        return (void *)toyFree;
    }
    if (strcmp(name, "toyLaunch") == 0) {
        return (void *)inner_launch;
    }
    return strcmp(name, "toySecret") == 0 ? (void *)toySecret : NULL;
}

/* A look-up that the driver makes for itself. */
#include <dlfcn.h>
int toySelf(int value) {
    int (*own)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "toyFree");
    int (*again)(int) = (int (*)(int))dlsym(RTLD_NEXT, "toyGone");
    return own == NULL || again != NULL ? -1 : own(value);
}
