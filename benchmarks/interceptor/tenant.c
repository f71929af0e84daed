/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant that wants all it can get, on the time-modelling fake driver.
 *
 *     tenant SCENARIO SECONDS
 *
 * Scenarios: long (20 ms kernels, one at a time), tiny (50 us kernels, many in flight), mixed (both), graph (a graph of ten 200 us kernels, replayed),
 * streams (four streams of 1 ms kernels), burst (half a second on, half a second off).
 * Prints a line at its start and each 100 ms: "<CLOCK_MONOTONIC in seconds> <device ns finished so far>", and keeps at most a small queue so that
 * what was launched has also run.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int (*module_load)(void **, const void *);
static int (*get_function)(void **, void *, const char *);
static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
static int (*stream_create)(void **, unsigned);
static int (*stream_synchronize)(void *);
static int (*begin_capture)(void *, int);
static int (*end_capture)(void *, void **);
static int (*instantiate)(void **, void *, unsigned long long);
static int (*graph_launch)(void *, void *);

static void *driver;
static uint64_t done_ns;
static double reported;

static double seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void *symbol(const char *name)
{
    void *address = dlsym(driver, name);
    if (address == NULL) {
        fprintf(stderr, "tenant: the driver has no %s\n", name);
        exit(2);
    }
    return address;
}

static void check(int result, const char *what)
{
    if (result != 0) {
        fprintf(stderr, "tenant: %s answered %d\n", what, result);
        exit(3);
    }
}

static void report(double now)
{
    reported = now;
    printf("%.4f %llu\n", now, (unsigned long long)done_ns);
}

static void did(uint64_t ns)
{
    done_ns += ns;
    double now = seconds();
    if (now - reported >= 0.1)
        report(now);
}

static void run(void *function, void *stream)
{
    check(launch(function, 64, 1, 1, 128, 1, 1, 0, stream, NULL, NULL), "cuLaunchKernel");
}

static void *function_named(void *module, const char *name)
{
    void *function;
    check(get_function(&function, module, name), name);
    return function;
}

static void serial(void *function, void *stream, uint64_t ns, int at_once)
{
    for (int i = 0; i < at_once; i++)
        run(function, stream);
    check(stream_synchronize(stream), "cuStreamSynchronize");
    did(ns * (uint64_t)at_once);
}

static void *captured(void *function, void *stream, int kernels)
{
    void *graph, *executable;
    check(begin_capture(stream, 2), "cuStreamBeginCapture_v2");
    for (int i = 0; i < kernels; i++)
        run(function, stream);
    check(end_capture(stream, &graph), "cuStreamEndCapture");
    check(instantiate(&executable, graph, 0), "cuGraphInstantiateWithFlags");
    return executable;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: tenant long|tiny|mixed|graph|streams|burst SECONDS\n");
        return 2;
    }
    driver = dlopen("libcuda.so.1", RTLD_NOW);
    if (driver == NULL) {
        fprintf(stderr, "tenant: %s\n", dlerror());
        return 2;
    }
    module_load = symbol("cuModuleLoadData");
    get_function = symbol("cuModuleGetFunction");
    launch = symbol("cuLaunchKernel");
    stream_create = symbol("cuStreamCreate");
    stream_synchronize = symbol("cuStreamSynchronize");
    begin_capture = symbol("cuStreamBeginCapture_v2");
    end_capture = symbol("cuStreamEndCapture");
    instantiate = symbol("cuGraphInstantiateWithFlags");
    graph_launch = symbol("cuGraphLaunch");
    int (*retain)(void **, int) = symbol("cuDevicePrimaryCtxRetain");
    int (*set_current)(void *) = symbol("cuCtxSetCurrent");
    int (*init)(unsigned) = symbol("cuInit");
    void *context, *module, *streams[4];
    check(init(0), "cuInit");
    check(retain(&context, 0), "cuDevicePrimaryCtxRetain");
    check(set_current(context), "cuCtxSetCurrent");
    check(module_load(&module, "image"), "cuModuleLoadData");
    for (int i = 0; i < 4; i++)
        check(stream_create(&streams[i], 1), "cuStreamCreate");
    const char *scenario = argv[1];
    void *long_one = function_named(module, "spin_20ms"), *tiny = function_named(module, "spin_50us");
    void *step = function_named(module, "spin_200us"), *middle = function_named(module, "spin_1ms");
    void *graph = strcmp(scenario, "graph") == 0 ? captured(step, streams[0], 10) : NULL;
    double length = atof(argv[2]);
    double began = seconds();
    report(began);
    for (double now = began; now - began < length; now = seconds()) {
        if (strcmp(scenario, "long") == 0) {
            serial(long_one, streams[0], 20000000, 1);
        } else if (strcmp(scenario, "tiny") == 0) {
            serial(tiny, streams[0], 50000, 20);
        } else if (strcmp(scenario, "mixed") == 0) {
            serial(tiny, streams[0], 50000, 20);
            serial(long_one, streams[0], 20000000, 1);
        } else if (strcmp(scenario, "streams") == 0) {
            for (int i = 0; i < 4; i++)
                run(middle, streams[i]);
            for (int i = 0; i < 4; i++)
                check(stream_synchronize(streams[i]), "cuStreamSynchronize");
            did(4000000);
        } else if (graph != NULL) {
            check(graph_launch(graph, streams[0]), "cuGraphLaunch");
            check(stream_synchronize(streams[0]), "cuStreamSynchronize");
            did(2000000);
        } else if (strcmp(scenario, "burst") == 0) {
            if ((int)((now - began) * 2) % 2 == 0)
                serial(middle, streams[0], 1000000, 2);
            else
                nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        } else {
            fprintf(stderr, "tenant: no scenario %s\n", scenario);
            return 2;
        }
    }
    report(seconds());
    return 0;
}
