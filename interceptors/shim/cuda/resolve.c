/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.c: the driver's own resolvers. The driver answers first, then its address is exchanged for our hook of that very
 * address: whatever version and stream flags the caller asked for, he gets the hook of the function that the driver chose.
 */
#include "cuda_shim.h"

static CUresult exchanged(CUresult result, const char *symbol, void **address) {
    if (result == CUDA_SUCCESS && address != NULL && *address != NULL) *address = hami_hook_for(&hami_library_cuda, symbol, *address);
    return result;
}

CUresult cuda_hook_cuGetProcAddress(cuGetProcAddress_fn real, const char *symbol, void **address, int version, cuuint64_t flags) {
    return exchanged(real(symbol, address, version, flags), symbol, address);
}

CUresult cuda_hook_cuGetProcAddress_v2(cuGetProcAddress_v2_fn real, const char *symbol, void **address, int version, cuuint64_t flags, int *status) {
    return exchanged(real(symbol, address, version, flags, status), symbol, address);
}

/* The tables behind this call are the driver's private business between its own libraries: they are counted, not entered. */
CUresult cuda_hook_cuGetExportTable(cuGetExportTable_fn real, const void **table, const CUuuid *id) {
    hami_count_private_table();
    return real(table, id);
}
