/* SPDX-License-Identifier: Apache-2.0 */
/* interposer.c: a malloc interposer in the usual style, whose first malloc asks dlsym for the next one. */
#include <dlfcn.h>
#include <stddef.h>
#include <unistd.h>

static void *(*next)(size_t);
static int depth;

void *malloc(size_t size) {
    if (next == NULL) {
        if (++depth > 1) {
            static const char text[] = "recursion\n";
            _exit(write(2, text, sizeof text - 1) > 0 ? 88 : 89);
        }
        next = (void *(*)(size_t))dlsym(RTLD_NEXT, "malloc");
        depth--;
    }
    return next(size);
}
