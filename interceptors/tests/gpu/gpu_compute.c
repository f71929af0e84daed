/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Work for the device, in the ways that programs give it: for so many seconds, and what was done by when. "Done" is device
 * time: the number of finished kernels times what each takes on an idle device.
 */
#include "gpu_probe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FIRST_RATE (UINT64_C(20) << 20) /* steps in 2^20 ns: a guess that calibration mends */
#define STREAMS 4
#define GRAPH_KERNELS 16
#define SAMPLE_NS UINT64_C(20000000)
#define SAMPLES 8192

static void spin(const struct kernels *kernels, uint64_t ns, uint64_t rate, handle stream, int cooperative) {
    void *parameters[] = {&ns, &rate};
    int code = cooperative ? cu.cooperative(kernels->spin, kernels->blocks, 1, 1, THREADS, 1, 1, 0, stream, parameters)
                           : cu.launch(kernels->spin, kernels->blocks, 1, 1, THREADS, 1, 1, 0, stream, parameters, NULL);
    must(code, "launching spin_arg");
}

static handle stream(void) {
    handle made;
    must(cu.stream_make(&made, NON_BLOCKING), "cuStreamCreate");
    return made;
}

static uint64_t measured(const struct kernels *kernels, uint64_t ns, uint64_t rate) {
    uint64_t start = now_ns();
    spin(kernels, ns, rate, NULL, 0);
    must(cu.synchronize(), "waiting for spin_arg");
    return now_ns() - start;
}

/* The difference of two lengths, so that what a launch and a wait cost is no part of it; the best of a few. */
int calibrate(const struct kernels *kernels) {
    const uint64_t brief = 5000000, lengthy = 25000000;
    uint64_t least[2] = {UINT64_MAX, UINT64_MAX};
    (void)measured(kernels, lengthy, FIRST_RATE);
    for (int i = 0; i < 5; i++) {
        uint64_t one = measured(kernels, brief, FIRST_RATE), other = measured(kernels, lengthy, FIRST_RATE);
        if (one < least[0]) least[0] = one;
        if (other < least[1]) least[1] = other;
    }
    double real = least[1] > least[0] ? (double)(least[1] - least[0]) : (double)least[1];
    double rate = (double)FIRST_RATE * (double)(lengthy - brief) / real;
    printf("{\"rate\": %llu, \"blocks\": %u}\n", (unsigned long long)rate, kernels->blocks);
    return 0;
}

/* -- the ways ------------------------------------------------------------------------------------------------- */

struct load {
    const struct kernels *kernels;
    uint64_t ns, rate;
    handle streams[STREAMS];
    handle graph;
};

static handle captured(const struct load *load) {
    handle graph, executable;
    must(cu.capture_begin(load->streams[0], CAPTURE_THREAD_LOCAL), "cuStreamBeginCapture");
    for (int i = 0; i < GRAPH_KERNELS; i++) spin(load->kernels, load->ns, load->rate, load->streams[0], 0);
    must(cu.capture_end(load->streams[0], &graph), "cuStreamEndCapture");
    must(cu.instantiate(&executable, graph, 0), "cuGraphInstantiate");
    return executable;
}

/* Each gives the device some kernels, waits for them and answers how many they were. */

static unsigned one_at_a_time(const struct load *load) {
    spin(load->kernels, load->ns, load->rate, load->streams[0], 0);
    must(cu.stream_wait(load->streams[0]), "waiting");
    return 1;
}

static unsigned many_ahead(const struct load *load) {
    const unsigned count = 64;
    for (unsigned i = 0; i < count; i++) spin(load->kernels, load->ns, load->rate, load->streams[0], 0);
    must(cu.stream_wait(load->streams[0]), "waiting");
    return count;
}

static unsigned replayed(const struct load *load) {
    must(cu.graph_launch(load->graph, load->streams[0]), "cuGraphLaunch");
    must(cu.stream_wait(load->streams[0]), "waiting");
    return GRAPH_KERNELS;
}

static unsigned on_streams(const struct load *load) {
    const unsigned each = 4;
    for (unsigned i = 0; i < each * STREAMS; i++) spin(load->kernels, load->ns, load->rate, load->streams[i % STREAMS], 0);
    for (unsigned i = 0; i < STREAMS; i++) must(cu.stream_wait(load->streams[i]), "waiting");
    return each * STREAMS;
}

static unsigned together(const struct load *load) {
    spin(load->kernels, load->ns, load->rate, load->streams[0], 1);
    must(cu.stream_wait(load->streams[0]), "waiting");
    return 1;
}

static const struct way {
    const char *name;
    unsigned (*run)(const struct load *);
} ways[] = {{"long", one_at_a_time}, {"tiny", many_ahead}, {"graph", replayed}, {"streams", on_streams}, {"cooperative", together}};

static const struct way *way_called(const char *name) {
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (strcmp(ways[i].name, name) == 0) return &ways[i];
    fprintf(stderr, "gpu_probe: no way to load the device is called %s\n", name);
    exit(2);
}

/* -- running one ---------------------------------------------------------------------------------------------- */

static struct { uint64_t at, done; } samples[SAMPLES];

static void pause_ms(uint64_t ms) {
    struct timespec length = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
    (void)nanosleep(&length, NULL);
}

static void report(size_t count, uint64_t took, uint64_t paused, uint64_t done) {
    printf("{\"seconds\": %.6f, \"paused\": %.6f, \"done\": %.6f, \"samples\": [", (double)took / 1e9, (double)paused / 1e9, (double)done / 1e9);
    for (size_t i = 0; i < count; i++) printf("%s[%.4f, %.4f]", i == 0 ? "" : ", ", (double)samples[i].at / 1e9, (double)samples[i].done / 1e9);
    printf("]}\n");
}

int compute(const struct kernels *kernels, int count, char **arguments) {
    const struct way *way = way_called(arguments[0]);
    struct load load = {.kernels = kernels, .ns = strtoull(arguments[2], NULL, 10), .rate = strtoull(arguments[3], NULL, 10)};
    uint64_t length = (uint64_t)(atof(arguments[1]) * 1e9), done = 0, taken = 0, paused = 0;
    uint64_t on = count > 5 ? strtoull(arguments[4], NULL, 10) * 1000000 : 0, off = count > 5 ? strtoull(arguments[5], NULL, 10) : 0;
    for (int i = 0; i < STREAMS; i++) load.streams[i] = stream();
    if (way->run == replayed) load.graph = captured(&load);
    wait_for_go();
    uint64_t start = now_ns(), now = start, burst = start, next = start;
    while (now - start < length) {
        done += way->run(&load) * load.ns;
        now = now_ns();
        if (now >= next && taken < SAMPLES) {
            samples[taken].at = now - start;
            samples[taken++].done = done;
            next = now + SAMPLE_NS;
        }
        if (on != 0 && now - burst >= on) {
            pause_ms(off);
            burst = now_ns();
            paused += burst - now;
            now = burst;
        }
    }
    report(taken, now - start, paused, done);
    return 0;
}
