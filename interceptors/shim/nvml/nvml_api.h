/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nvml_api.h: the NVIDIA management library as far as it concerns us, written from facts: the structs that carry memory and
 * processes, and the codes that we answer. Everything else is a `void *`.
 */
#ifndef HAMI_NVML_API_H
#define HAMI_NVML_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hami_core.h"

typedef int nvmlReturn_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_FUNCTION_NOT_FOUND = 13,
    NVML_ERROR_MEMORY = 20,
};

typedef struct nvmlDevice_st *nvmlDevice_t;

typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned int pid;
    unsigned long long used;
} nvmlProcessInfo_v1_t;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
} nvmlProcessInfo_v2_t;

typedef struct {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
    unsigned long long protected_used;
} nvmlProcessDetail_v1_t;

typedef struct {
    unsigned int version, mode, count;
    nvmlProcessDetail_v1_t *processes;
} nvmlProcessDetailList_t;

typedef struct {
    char legacy_id[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char id[32]; /* 00000000:07:00.0 */
} nvmlPciInfo_t;

_Static_assert(sizeof(nvmlMemory_v2_t) == 40 && sizeof(nvmlProcessInfo_v2_t) == 24 && sizeof(nvmlProcessDetail_v1_t) == 32, "ABI of NVML's structs");
_Static_assert(sizeof(nvmlPciInfo_t) == 68 && offsetof(nvmlPciInfo_t, id) == 36, "ABI of nvmlPciInfo_t");

#endif
