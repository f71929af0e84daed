/* SPDX-License-Identifier: Apache-2.0 */
/*
 * import.c: memory that another process made. Within the container its maker is charged for it, once. Memory from outside is
 * charged to the importer where the policy says so (CHARGE_IMPORTS); it exists already, so that refusing after the driver has
 * opened it never exceeds anything.
 */
#include <string.h>
#include <sys/stat.h>

#include "cuda_shim.h"

static bool charged_here(int device, const void *handle, size_t length) {
    return cuda_flag(device, HAMI_DEVICE_FLAG_CHARGE_IMPORTS) && !hami_export_known(handle, length);
}

/* -- handles of physical memory --------------------------------------------------------------------------------------- */

/* A descriptor has another number in each process; what it names is the same file. */
struct file_name {
    uint64_t device, inode, special;
};

static bool name_of(int descriptor, struct file_name *name) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return false;
    *name = (struct file_name){(uint64_t)status.st_dev, (uint64_t)status.st_ino, (uint64_t)status.st_rdev};
    return true;
}

CUresult cuda_hook_cuMemExportToShareableHandle(cuMemExportToShareableHandle_fn real, void *out, CUmemGenericAllocationHandle handle, int type, unsigned long long flags) {
    CUresult result = real(out, handle, type, flags);
    struct hami_entry entry;
    struct file_name name;
    if (result != CUDA_SUCCESS || !hami_book_find(HAMI_BOOK_HANDLE, handle, &entry)) return result;
    if (type == CU_MEM_HANDLE_TYPE_FABRIC) hami_export_note(out, sizeof(CUmemFabricHandle), entry.hold.bytes);
    else if (type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR && name_of(*(int *)out, &name)) hami_export_note(&name, sizeof name, entry.hold.bytes);
    return result;
}

CUresult cuda_hook_cuMemImportFromShareableHandle(cuMemImportFromShareableHandle_fn real, CUmemGenericAllocationHandle *out, void *handle, int type) {
    struct file_name name;
    int device = cuda_current_index();
    bool foreign = type == CU_MEM_HANDLE_TYPE_FABRIC && charged_here(device, handle, sizeof(CUmemFabricHandle));
    if (type == CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) foreign = name_of((int)(intptr_t)handle, &name) && charged_here(device, &name, sizeof name);
    CUresult result = real(out, handle, type);
    if (result == CUDA_SUCCESS && foreign) cuda_foreign_handle(*out);
    return result;
}

/* -- IPC --------------------------------------------------------------------------------------------------------------- */

static uint64_t bytes_at(CUdeviceptr pointer) {
    cuMemGetAddressRange_v2_fn range = cuda_real_cuMemGetAddressRange_v2();
    CUdeviceptr base;
    size_t bytes;
    return range != NULL && range(&base, &bytes, pointer) == CUDA_SUCCESS ? bytes : 0;
}

CUresult cuda_hook_cuIpcGetMemHandle(cuIpcGetMemHandle_fn real, CUipcMemHandle *out, CUdeviceptr pointer) {
    CUresult result = real(out, pointer);
    if (result == CUDA_SUCCESS) hami_export_note(out, sizeof *out, bytes_at(pointer));
    return result;
}

static CUresult opened(CUdeviceptr pointer, const CUipcMemHandle *handle) {
    int device = cuda_current_index();
    struct hami_hold hold;
    if (!charged_here(device, handle, sizeof *handle)) return CUDA_SUCCESS;
    uint64_t bytes = bytes_at(pointer);
    enum hami_verdict verdict = cuda_reserve(device, bytes, &hold);
    if (verdict == HAMI_OK) {
        (void)hami_book_keep(HAMI_BOOK_OTHER, pointer, &hold, bytes, bytes);
        return CUDA_SUCCESS;
    }
    cuIpcCloseMemHandle_fn close = cuda_real_cuIpcCloseMemHandle();
    if (close != NULL) (void)close(pointer);
    return cuda_refusal(verdict);
}

CUresult cuda_hook_cuIpcOpenMemHandle_v2(cuIpcOpenMemHandle_v2_fn real, CUdeviceptr *out, CUipcMemHandle handle, unsigned int flags) {
    CUresult result = real(out, handle, flags);
    return result == CUDA_SUCCESS ? opened(*out, &handle) : result;
}

CUresult cuda_hook_cuIpcOpenMemHandle(cuIpcOpenMemHandle_fn real, CUdeviceptr *out, CUipcMemHandle handle, unsigned int flags) {
    CUresult result = real(out, handle, flags);
    return result == CUDA_SUCCESS ? opened(*out, &handle) : result;
}

CUresult cuda_hook_cuIpcCloseMemHandle(cuIpcCloseMemHandle_fn real, CUdeviceptr pointer) {
    struct hami_entry entry;
    bool ours = hami_book_take(HAMI_BOOK_OTHER, pointer, &entry);
    CUresult result = real(pointer);
    if (ours && result == CUDA_SUCCESS) hami_give_back(&entry.hold);
    else if (ours) hami_book_return(HAMI_BOOK_OTHER, &entry);
    return result;
}

/* -- external memory (Vulkan, Direct3D…): from outside by nature ------------------------------------------------------- */

CUresult cuda_hook_cuImportExternalMemory(cuImportExternalMemory_fn real, CUexternalMemory *out, const CUDA_EXTERNAL_MEMORY_HANDLE_DESC *what) {
    int device = cuda_current_index();
    struct hami_hold hold;
    if (what == NULL || !cuda_flag(device, HAMI_DEVICE_FLAG_CHARGE_IMPORTS)) return real(out, what);
    enum hami_verdict verdict = cuda_reserve(device, what->size, &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, what);
    if (result != CUDA_SUCCESS) hami_give_back(&hold);
    else (void)hami_book_keep(HAMI_BOOK_OTHER, cuda_key(*out), &hold, what->size, what->size);
    return result;
}

CUresult cuda_hook_cuDestroyExternalMemory(cuDestroyExternalMemory_fn real, CUexternalMemory memory) {
    struct hami_entry entry;
    bool ours = hami_book_take(HAMI_BOOK_OTHER, cuda_key(memory), &entry);
    CUresult result = real(memory);
    if (ours && result == CUDA_SUCCESS) hami_give_back(&entry.hold);
    else if (ours) hami_book_return(HAMI_BOOK_OTHER, &entry);
    return result;
}
