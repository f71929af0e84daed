/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU test's measuring program: run directly or with the library under test preloaded, it does the same. It knows nothing
 * of that library. Prints one JSON object.
 *
 *     gpu_probe PTX identity
 *     gpu_probe PTX launch COUNT               how long cuLaunchKernel of an empty kernel takes
 *     gpu_probe PTX alloc BYTES COUNT          how long cuMemAlloc and cuMemFree take
 *     gpu_probe PTX calibrate                  the `rate` that makes spin_arg take as long as asked
 *     gpu_probe PTX compute KIND SECONDS KERNEL_NS RATE [ON_MS OFF_MS]
 */
#include "gpu_probe.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct driver cu;

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void must(int code, const char *what) {
    if (code == SUCCESS) return;
    fprintf(stderr, "gpu_probe: %s: the driver answers %d\n", what, code);
    exit(code == OUT_OF_MEMORY ? 3 : 2);
}

static void *library;

static void *found(const char *name) {
    void *symbol = dlsym(library, name);
    if (symbol != NULL) return symbol;
    fprintf(stderr, "gpu_probe: libcuda.so.1 has no %s\n", name);
    exit(2);
}

#define FIND(field, name) (*(void **)(&cu.field) = found(name))

static void find_all(void) {
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "gpu_probe: %s\n", dlerror());
        exit(2);
    }
    FIND(init, "cuInit"), FIND(driver_version, "cuDriverGetVersion"), FIND(name, "cuDeviceGetName"), FIND(uuid, "cuDeviceGetUuid");
    FIND(total, "cuDeviceTotalMem_v2"), FIND(attribute, "cuDeviceGetAttribute"), FIND(retain, "cuDevicePrimaryCtxRetain");
    FIND(set_current, "cuCtxSetCurrent"), FIND(synchronize, "cuCtxSynchronize"), FIND(memory, "cuMemGetInfo_v2");
    FIND(allocate, "cuMemAlloc_v2"), FIND(free, "cuMemFree_v2"), FIND(load, "cuModuleLoadData"), FIND(function, "cuModuleGetFunction");
    FIND(launch, "cuLaunchKernel"), FIND(cooperative, "cuLaunchCooperativeKernel");
    FIND(stream_make, "cuStreamCreate"), FIND(stream_wait, "cuStreamSynchronize");
    FIND(capture_begin, "cuStreamBeginCapture_v2"), FIND(capture_end, "cuStreamEndCapture");
    FIND(instantiate, "cuGraphInstantiateWithFlags"), FIND(graph_launch, "cuGraphLaunch");
}

void begin(int with_device) {
    handle context;
    find_all();
    must(cu.init(0), "cuInit");
    if (!with_device) return;
    must(cu.retain(&context, 0), "a context on device 0");
    must(cu.set_current(context), "cuCtxSetCurrent");
}

void wait_for_go(void) {
    char line[16];
    printf("ready\n");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL) exit(2); /* whoever started us is gone */
}

/* -- the kernels --------------------------------------------------------------------------------------------- */

/* What the driver's translator may know, newest first: current ones no longer take the oldest targets. */
static const char *const dialects[] = {".version 6.3\n.target sm_75\n", ".version 6.0\n.target sm_60\n"};

static char *text_of(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 65536);
    if (file == NULL || text == NULL || fread(text, 1, 65535, file) == 0) {
        fprintf(stderr, "gpu_probe: %s cannot be read\n", path);
        exit(2);
    }
    fclose(file);
    return text;
}

struct kernels load_kernels(const char *ptx_path) {
    struct kernels kernels;
    handle module = NULL;
    int sms = 1, per_sm = THREADS, code = 1;
    char *body = text_of(ptx_path), *whole = malloc(strlen(body) + 64);
    for (size_t i = 0; code != SUCCESS && i < sizeof dialects / sizeof *dialects; i++) {
        strcpy(whole, dialects[i]);
        strcat(whole, body);
        code = cu.load(&module, whole);
    }
    must(code, "loading the kernels");
    must(cu.function(&kernels.null, module, "spin_0ns"), "spin_0ns");
    must(cu.function(&kernels.spin, module, "spin_arg"), "spin_arg");
    (void)cu.attribute(&sms, ATTRIBUTE_SMS, 0); /* where they are not told, one block will do */
    (void)cu.attribute(&per_sm, ATTRIBUTE_THREADS_PER_SM, 0);
    kernels.blocks = (unsigned)(sms > 0 ? sms : 1) * (unsigned)(per_sm >= THREADS ? per_sm / THREADS : 1);
    free(body);
    free(whole);
    return kernels;
}

/* -- latency ---------------------------------------------------------------------------------------------------- */

static int ascending(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return a < b ? -1 : a > b;
}

static void say(const char *name, uint64_t *taken, size_t count) {
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += taken[i];
    qsort(taken, count, sizeof *taken, ascending);
    printf("\"%s\": {\"count\": %zu, \"mean\": %.1f, \"p50\": %lu, \"p90\": %lu, \"p99\": %lu, \"p999\": %lu, \"max\": %lu}", name, count,
           (double)sum / (double)count, (unsigned long)taken[count / 2], (unsigned long)taken[count * 9 / 10], (unsigned long)taken[count * 99 / 100],
           (unsigned long)taken[count * 999 / 1000], (unsigned long)taken[count - 1]);
}

static uint64_t *room(size_t count) {
    uint64_t *taken = calloc(count, sizeof *taken);
    if (count != 0 && taken != NULL) return taken;
    fprintf(stderr, "gpu_probe: %zu is no count to measure\n", count);
    exit(2);
}

static int launches(const struct kernels *kernels, size_t count) {
    uint64_t *taken = room(count);
    for (int i = 0; i < 64; i++) must(cu.launch(kernels->null, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL), "a launch");
    must(cu.synchronize(), "waiting for the first launches");
    wait_for_go();
    for (size_t i = 0; i < count; i++) {
        uint64_t start = now_ns();
        int code = cu.launch(kernels->null, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL);
        taken[i] = now_ns() - start;
        must(code, "a launch");
        if (i % 256 == 255) must(cu.synchronize(), "waiting for launches"); /* a full queue would be measured instead */
    }
    must(cu.synchronize(), "waiting for launches");
    printf("{");
    say("launch", taken, count);
    printf("}\n");
    free(taken);
    return 0;
}

static int allocations(size_t bytes, size_t count) {
    uint64_t *given = room(count), *freed = room(count), pointer;
    must(cu.allocate(&pointer, bytes), "the first allocation");
    must(cu.free(pointer), "the first free");
    wait_for_go();
    for (size_t i = 0; i < count; i++) {
        uint64_t start = now_ns();
        int code = cu.allocate(&pointer, bytes);
        uint64_t middle = now_ns();
        must(code, "an allocation");
        code = cu.free(pointer);
        freed[i] = now_ns() - middle;
        given[i] = middle - start;
        must(code, "a free");
    }
    printf("{");
    say("alloc", given, count);
    printf(", ");
    say("free", freed, count);
    printf("}\n");
    free(given);
    free(freed);
    return 0;
}

/* -- who is there --------------------------------------------------------------------------------------------- */

static int identity(void) {
    char name[128] = "";
    unsigned char id[16];
    size_t total = 0;
    int version = 0;
    must(cu.driver_version(&version), "cuDriverGetVersion");
    must(cu.name(name, sizeof name, 0), "the name of device 0");
    must(cu.uuid(id, 0), "the UUID of device 0");
    must(cu.total(&total, 0), "the memory of device 0");
    printf("{\"name\": \"%s\", \"cuda\": %d, \"total\": %zu, \"uuid\": \"GPU-", name, version, total);
    for (int i = 0; i < 16; i++) printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id[i]);
    printf("\"}\n");
    return 0;
}

int main(int count, char **arguments) {
    const char *what = count > 2 ? arguments[2] : "";
    if (count == 3 && strcmp(what, "identity") == 0) return begin(0), identity();
    begin(1);
    struct kernels kernels = load_kernels(arguments[1]);
    if (count == 4 && strcmp(what, "launch") == 0) return launches(&kernels, strtoull(arguments[3], NULL, 10));
    if (count == 5 && strcmp(what, "alloc") == 0) return allocations(strtoull(arguments[3], NULL, 10), strtoull(arguments[4], NULL, 10));
    if (count == 3 && strcmp(what, "calibrate") == 0) return calibrate(&kernels);
    if (count >= 7 && strcmp(what, "compute") == 0) return compute(&kernels, count - 3, arguments + 3);
    fprintf(stderr, "usage: gpu_probe PTX identity | launch COUNT | alloc BYTES COUNT | calibrate | compute KIND SECONDS KERNEL_NS RATE [ON_MS OFF_MS]\n");
    return 2;
}
