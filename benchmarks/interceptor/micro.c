/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one call costs, direct or hooked: run once without and once with the library preloaded, and subtract.
 *
 *     micro launch|alloc|start <batches> <live blocks> <barrier fd or -1>
 *
 * Prints one line: "<median ns> <p99 ns> <smallest ns>" per call. Calls are timed in batches (a clock read costs more than a hook);
 * percentiles are over batches. With a barrier fd, the process says 'r' on stdout when it is ready and reads one byte before it measures.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64 };

static int (*init)(unsigned);
static int (*retain)(void **, int);
static int (*allocate)(uint64_t *, size_t);
static int (*release)(uint64_t);
static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);

static double now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec * 1e9 + (double)at.tv_nsec;
}

static int by_size(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void *symbol(void *driver, const char *name)
{
    void *address = dlsym(driver, name);
    if (address == NULL) {
        fprintf(stderr, "micro: the driver has no %s\n", name);
        exit(2);
    }
    return address;
}

static void check(int result, const char *what)
{
    if (result != 0) {
        fprintf(stderr, "micro: %s answered %d\n", what, result);
        exit(3);
    }
}

static void pair(void)
{
    uint64_t pointer = 0;
    check(allocate(&pointer, 4 << 20), "cuMemAlloc_v2");
    check(release(pointer), "cuMemFree_v2");
}

static void one_launch(void)
{
    check(launch(&init, 1, 1, 1, 128, 1, 1, 0, NULL, NULL, NULL), "cuLaunchKernel");
}

static void measure(void (*call)(void), long batches)
{
    double *times = malloc(sizeof *times * (size_t)batches);
    for (long i = 0; i < 2000; i++)
        call();
    for (long batch = 0; batch < batches; batch++) {
        double begun = now_ns();
        for (int i = 0; i < BATCH; i++)
            call();
        times[batch] = (now_ns() - begun) / BATCH;
    }
    qsort(times, (size_t)batches, sizeof *times, by_size);
    printf("%.1f %.1f %.1f\n", times[batches / 2], times[batches * 99 / 100], times[0]);
    free(times);
}

static void wait_for_all(int fd)
{
    char byte;
    if (fd < 0)
        return;
    if (write(1, "r", 1) != 1 || read(fd, &byte, 1) < 0)
        exit(4);
}

/* The first call of a process: joining, mapping, claiming a slot. */
static void start(int fd)
{
    void *context;
    wait_for_all(fd);
    double begun = now_ns();
    check(init(0), "cuInit");
    check(retain(&context, 0), "cuDevicePrimaryCtxRetain");
    pair();
    double took = now_ns() - begun;
    printf("%.1f %.1f %.1f\n", took, took, took);
}

int main(int argc, char **argv)
{
    if (argc != 5) {
        fprintf(stderr, "usage: micro launch|alloc|start BATCHES LIVE-BLOCKS BARRIER-FD\n");
        return 2;
    }
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) {
        fprintf(stderr, "micro: %s\n", dlerror());
        return 2;
    }
    init = symbol(driver, "cuInit");
    retain = symbol(driver, "cuDevicePrimaryCtxRetain");
    allocate = symbol(driver, "cuMemAlloc_v2");
    release = symbol(driver, "cuMemFree_v2");
    launch = symbol(driver, "cuLaunchKernel");
    long batches = atol(argv[2]), live = atol(argv[3]);
    int fd = atoi(argv[4]);
    if (strcmp(argv[1], "start") == 0) {
        start(fd);
        return 0;
    }
    void *context;
    check(init(0), "cuInit");
    check(retain(&context, 0), "cuDevicePrimaryCtxRetain");
    for (long i = 0; i < live; i++) {
        uint64_t kept;
        check(allocate(&kept, 2 << 20), "cuMemAlloc_v2");
    }
    wait_for_all(fd);
    measure(strcmp(argv[1], "launch") == 0 ? one_launch : pair, batches);
    fflush(stdout);
    if (fd >= 0)
        wait_for_all(fd); /* keep the slot until everybody has measured */
    return 0;
}
