/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA driver API as far as the GPU test's program needs it, found by dlopen and dlsym as any program finds it; nothing is
 * linked. Numbers and signatures are the driver API's own. Everything that fails ends the program with a sentence.
 */
#ifndef GPU_PROBE_H
#define GPU_PROBE_H

#include <stddef.h>
#include <stdint.h>

enum { SUCCESS = 0, OUT_OF_MEMORY = 2, THREADS = 1024, ATTRIBUTE_SMS = 16, ATTRIBUTE_THREADS_PER_SM = 39, CAPTURE_THREAD_LOCAL = 1, NON_BLOCKING = 1 };

typedef void *handle;

struct driver {
    int (*init)(unsigned);
    int (*driver_version)(int *);
    int (*name)(char *, int, int);
    int (*uuid)(unsigned char *, int);
    int (*total)(size_t *, int);
    int (*attribute)(int *, int, int);
    int (*retain)(handle *, int);
    int (*set_current)(handle);
    int (*synchronize)(void);
    int (*memory)(size_t *, size_t *);
    int (*allocate)(uint64_t *, size_t);
    int (*free)(uint64_t);
    int (*load)(handle *, const void *);
    int (*function)(handle *, handle, const char *);
    int (*launch)(handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **, void **);
    int (*cooperative)(handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, handle, void **);
    int (*stream_make)(handle *, unsigned);
    int (*stream_wait)(handle);
    int (*capture_begin)(handle, int);
    int (*capture_end)(handle, handle *);
    int (*instantiate)(handle *, handle, unsigned long long);
    int (*graph_launch)(handle, handle);
};

extern struct driver cu;

uint64_t now_ns(void);

/* Ends the program: `what` could not be done, and the driver's number for why. */
void must(int code, const char *what);

/* Loads the driver; with `device` also its first device, made current. */
void begin(int with_device);

/* Says "ready" and waits for a line: several programs then start measuring together. */
void wait_for_go(void);

/* The kernels, and how many blocks fill the device. */
struct kernels {
    handle null, spin;
    unsigned blocks;
};
struct kernels load_kernels(const char *ptx_path);

/* -- gpu_compute.c -- */
int calibrate(const struct kernels *kernels);
int compute(const struct kernels *kernels, int count, char **arguments);

#endif
