/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: its own resolver, its export tables, and what its errors are called. */
#include "fake_cuda.h"

#include "versions.h"

enum { LEGACY_STREAM = 1, PER_THREAD_STREAM = 2 };
enum { FOUND = 0, SYMBOL_NOT_FOUND = 1, VERSION_NOT_SUFFICIENT = 2 };

static int since(const char *symbol)
{
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        if (strcmp(versions[i].symbol, symbol) == 0)
            return versions[i].since;
    return 0;
}

static void *row(const char *symbol)
{
    for (size_t i = 0; i < cuda_fake_count; i++)
        if (strcmp(cuda_fake_rows[i].name, symbol) == 0)
            return cuda_fake_rows[i].address;
    return NULL;
}

/* The newest export that a program built for `version` may call by this name, as its stream flag wants it. */
static void *resolve(const char *name, int version, cuuint64_t flags, int *status)
{
    char symbol[160];
    bool too_old = false;
    for (int suffix = 9; suffix >= 1; suffix--) {
        int length = suffix > 1 ? snprintf(symbol, sizeof symbol, "%s_v%d", name, suffix) : snprintf(symbol, sizeof symbol, "%s", name);
        if (row(symbol) == NULL)
            continue;
        if (since(symbol) > version) {
            too_old = true;
            continue;
        }
        *status = FOUND;
        static const char *const twins[] = {"_ptsz", "_ptds"};
        for (int twin = 0; flags == PER_THREAD_STREAM && twin < 2; twin++) {
            snprintf(symbol + length, sizeof symbol - (size_t)length, "%s", twins[twin]);
            if (row(symbol) != NULL)
                return row(symbol);
        }
        symbol[length] = '\0';
        return row(symbol);
    }
    *status = too_old ? VERSION_NOT_SUFFICIENT : SYMBOL_NOT_FOUND;
    return NULL;
}

CUresult fake_cuGetProcAddress_v2(const char *symbol, void **address, int version, cuuint64_t flags, int *status)
{
    int said;
    if (symbol == NULL || address == NULL || strlen(symbol) > 120 || flags > PER_THREAD_STREAM)
        return CUDA_ERROR_INVALID_VALUE;
    *address = resolve(symbol, version, flags, &said);
    if (status != NULL)
        *status = said;
    return *address != NULL ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

CUresult fake_cuGetProcAddress(const char *symbol, void **address, int version, cuuint64_t flags)
{
    return fake_cuGetProcAddress_v2(symbol, address, version, flags, NULL);
}

/*
 * The driver's private tables: a size in bytes, then functions. Whatever is called there answers 0 and does nothing, so that a
 * caller meets an answer that it cannot use, and never a hole. Nothing genuine is imitated: a real CUDA runtime does not get
 * beyond its own checks of the driver here (docs/decisions/0008).
 */
#define SLOTS 127

static uintptr_t nothing(void) { return 0; }

CUresult fake_cuGetExportTable(const void **table, const CUuuid *id)
{
    static struct { uintptr_t size; uintptr_t (*slots[SLOTS])(void); } private_table = {sizeof private_table, {[0 ... SLOTS - 1] = nothing}};
    if (table == NULL || id == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *table = &private_table;
    return CUDA_SUCCESS;
}

static const struct { CUresult code; const char *name, *text; } errors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CUDA_ERROR_UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult text_of(CUresult code, const char **text, bool name)
{
    if (text == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    *text = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code)
            *text = name ? errors[i].name : errors[i].text;
    return *text != NULL ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult fake_cuGetErrorName(CUresult code, const char **text) { return text_of(code, text, true); }
CUresult fake_cuGetErrorString(CUresult code, const char **text) { return text_of(code, text, false); }
