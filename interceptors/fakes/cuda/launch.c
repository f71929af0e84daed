/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fake CUDA driver: code and launches. A kernel's name says how long it runs and how much of the device it takes:
 *
 *     spin_2ms, spin_150us, spin_800ns    so long
 *     spin_2ms_occ25                      … and on 25 % of the device: four of them run beside each other
 *     spin_arg                            as many ns as the uint64_t that kernelParams[0] points to
 *     anything else                       HAMI_FAKE_KERNEL_NS, or 10 µs
 */
#include "fake_cuda.h"

/* -- modules ------------------------------------------------------------------------------------------------ */

static uint64_t default_duration(void)
{
    const char *text = getenv("HAMI_FAKE_KERNEL_NS");
    return text != NULL ? strtoull(text, NULL, 10) : 10000;
}

static void read_name(struct CUfunc_st *function)
{
    char unit[3] = "";
    unsigned long long amount = 0;
    unsigned percent = 0;
    const char *share = strstr(function->name, "_occ");
    function->duration_ns = default_duration();
    function->permille = 1000;
    function->by_argument = strncmp(function->name, "spin_arg", 8) == 0;
    if (sscanf(function->name, "spin_%llu%2[nmus]", &amount, unit) == 2)
        function->duration_ns = amount * (unit[0] == 'm' ? 1000000u : unit[0] == 'u' ? 1000u : 1u);
    if (share != NULL && sscanf(share, "_occ%u", &percent) == 1 && percent > 0 && percent <= 100)
        function->permille = percent * 10;
}

static CUresult load(CUmodule *module, bool library)
{
    struct CUctx_st *context;
    CUresult result = module == NULL ? CUDA_ERROR_INVALID_VALUE : library ? fc_ready() : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    *module = calloc(1, sizeof **module);
    (*module)->library = library;
    return CUDA_SUCCESS;
}

static CUresult function_of(struct CUfunc_st **function, struct CUmod_st *module, const char *name)
{
    CUresult result = function == NULL || module == NULL || name == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (strncmp(name, "missing", 7) == 0)
        return CUDA_ERROR_NOT_FOUND;
    fc_lock();
    struct CUfunc_st *at = module->functions;
    while (at != NULL && strcmp(at->name, name) != 0)
        at = at->next;
    if (at == NULL) {
        at = calloc(1, sizeof *at);
        *at = (struct CUfunc_st){.name = strdup(name), .module = module, .next = module->functions};
        read_name(at);
        module->functions = at;
    }
    *function = at;
    return fc_unlock(CUDA_SUCCESS);
}

static CUresult unload(struct CUmod_st *module)
{
    CUresult result = module == NULL ? CUDA_ERROR_INVALID_HANDLE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    for (struct CUfunc_st *function = module->functions, *next; function != NULL; function = next) {
        next = function->next;
        free(function->name);
        free(function);
    }
    free(module);
    return CUDA_SUCCESS;
}

CUresult fake_cuModuleLoad(CUmodule *module, const char *name) { return name == NULL ? CUDA_ERROR_INVALID_VALUE : load(module, false); }
CUresult fake_cuModuleLoadData(CUmodule *module, const void *image) { return image == NULL ? CUDA_ERROR_INVALID_VALUE : load(module, false); }
CUresult fake_cuModuleLoadFatBinary(CUmodule *module, const void *image) { return fake_cuModuleLoadData(module, image); }

CUresult fake_cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count, int *options, void **values)
{
    (void)count;
    (void)options;
    (void)values;
    return fake_cuModuleLoadData(module, image);
}

CUresult fake_cuModuleUnload(CUmodule module) { return unload(module); }
CUresult fake_cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) { return function_of(function, module, name); }

CUresult fake_cuModuleGetLoadingMode(int *mode)
{
    *mode = 2; /* lazy */
    return fc_ready();
}

CUresult fake_cuLibraryLoadData(CUlibrary *library, const void *code, int *jit, void **jit_values, unsigned int jit_count, int *options, void **values,
                                unsigned int count)
{
    (void)jit, (void)jit_values, (void)jit_count, (void)options, (void)values, (void)count;
    return code == NULL ? CUDA_ERROR_INVALID_VALUE : load((CUmodule *)library, true);
}

CUresult fake_cuLibraryLoadFromFile(CUlibrary *library, const char *name, int *jit, void **jit_values, unsigned int jit_count, int *options, void **values,
                                    unsigned int count)
{
    return fake_cuLibraryLoadData(library, name, jit, jit_values, jit_count, options, values, count);
}

CUresult fake_cuLibraryUnload(CUlibrary library) { return unload((CUmodule)library); }

CUresult fake_cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
    return function_of((CUfunction *)kernel, (CUmodule)library, name);
}

CUresult fake_cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
    *module = (CUmodule)library;
    return fc_ready();
}

/* A kernel may be launched as it is: here it is its function. */
CUresult fake_cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
    *function = (CUfunction)kernel;
    return fc_ready();
}

CUresult fake_cuFuncGetName(const char **name, CUfunction function)
{
    if (name == NULL || function == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *name = function->name;
    return fc_ready();
}

CUresult fake_cuKernelGetName(const char **name, CUkernel kernel) { return fake_cuFuncGetName(name, (CUfunction)kernel); }

CUresult fake_cuFuncGetModule(CUmodule *module, CUfunction function)
{
    *module = function->module;
    return fc_ready();
}

/* -- launches ----------------------------------------------------------------------------------------------- */

uint64_t fc_duration(const struct CUfunc_st *function, void **parameters)
{
    uint64_t asked = function->duration_ns;
    if (function->by_argument && parameters != NULL && parameters[0] != NULL)
        memcpy(&asked, parameters[0], sizeof asked);
    return asked;
}

CUresult fc_run(struct CUstream_st *stream, uint64_t duration_ns, uint32_t permille)
{
    struct card_kernel kernel;
    fc_lock();
    uint64_t room_at = stream->finishes[stream->launches % FC_QUEUE];
    if (room_at > card_now()) { /* the queue is full: launching blocks until the oldest is done */
        fc_unlock(CUDA_SUCCESS);
        card_wait(room_at);
        fc_lock();
    }
    fc_stream_wait_order(stream);
    if (!card_run(fc_card(stream->context->device), stream->tail, duration_ns, permille, &kernel))
        return fc_unlock(CUDA_ERROR_UNKNOWN);
    stream->tail = kernel.finish;
    stream->finishes[stream->launches++ % FC_QUEUE] = kernel.finish;
    return fc_unlock(CUDA_SUCCESS);
}

static CUresult launch(CUfunction function, uint64_t blocks, CUstream given, void **parameters)
{
    struct CUstream_st *stream;
    CUresult result = function == NULL ? CUDA_ERROR_INVALID_HANDLE : blocks == 0 ? CUDA_ERROR_INVALID_VALUE : fc_stream(given, &stream);
    if (result != CUDA_SUCCESS)
        return result;
    uint64_t duration = fc_duration(function, parameters);
    fc_lock();
    if (stream->capture != NULL)
        return fc_unlock(fc_capture_kernel(stream->capture, duration, function->permille));
    fc_unlock(CUDA_SUCCESS);
    return fc_run(stream, duration, function->permille);
}

CUresult fake_cuLaunchKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
                             unsigned int shared, CUstream stream, void **parameters, void **extra)
{
    (void)shared;
    (void)extra;
    return launch(f, (uint64_t)gx * gy * gz * bx * by * bz, stream, parameters);
}

CUresult fake_cuLaunchCooperativeKernel(CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
                                        unsigned int shared, CUstream stream, void **parameters)
{
    return fake_cuLaunchKernel(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, NULL);
}

CUresult fake_cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **parameters, void **extra)
{
    if (config == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    return fake_cuLaunchKernel(f, config->grid_x, config->grid_y, config->grid_z, config->block_x, config->block_y, config->block_z, config->shared_bytes,
                               config->stream, parameters, extra);
}

CUresult fake_cuLaunchCooperativeKernelMultiDevice(CUDA_LAUNCH_PARAMS *list, unsigned int count, unsigned int flags)
{
    (void)flags;
    CUresult result = list == NULL || count == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    for (unsigned i = 0; result == CUDA_SUCCESS && i < count; i++)
        result = launch(list[i].function, (uint64_t)list[i].grid_x * list[i].grid_y * list[i].grid_z, list[i].stream, list[i].parameters);
    return result;
}

CUresult fake_cuLaunch(CUfunction f) { return launch(f, 1, NULL, NULL); }
CUresult fake_cuLaunchGrid(CUfunction f, int width, int height) { return launch(f, (uint64_t)width * (uint64_t)height, NULL, NULL); }
CUresult fake_cuLaunchGridAsync(CUfunction f, int width, int height, CUstream stream) { return launch(f, (uint64_t)width * (uint64_t)height, stream, NULL); }
