/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cndrv_api.h: Cambricon's driver API as far as it concerns us, written from facts: names, numbers and layouts of the ABI.
 * Handles are opaque, enumerations are ints, and a struct appears only where a hook or the fake driver looks inside it.
 */
#ifndef HAMI_CNDRV_API_H
#define HAMI_CNDRV_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hami_core.h"

typedef int CNresult;
enum {
    CN_SUCCESS = 0,
    CN_ERROR_NOT_READY = 1,
    CN_ERROR_INVALID_DEVICE = 100005,
    CN_ERROR_INVALID_VALUE = 100006,
    CN_OPS_ERROR_NOT_SUPPORTED = 100050,
    CN_OPS_ERROR_NOT_PERMITTED = 100051,
    CN_MEMORY_ERROR_OUT_OF_MEMORY = 100100,
    CN_MEMORY_ERROR_INVALID_ADDRESS = 100102,
    CN_CONTEXT_ERROR_INVALID = 100201,
    CN_ERROR_NOT_FOUND = 100301,
};

typedef uint64_t cn_uint64_t;
typedef uint64_t CNaddr;
typedef uint64_t CNmemGenericAllocationHandle;
typedef int CNdev;
typedef struct CNcontext_st *CNcontext;
typedef struct CNqueue_st *CNqueue;
typedef struct CNnotifier_st *CNnotifier;
typedef struct CNkernel_st *CNkernel;
typedef struct CNmemoryPool_st *CNmemoryPool;
typedef struct CNtaskTopoEntity_st *CNtaskTopoEntity;

enum { CN_MEM_LOCATION_TYPE_DEVICE = 1, CN_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 1 };
enum { CN_MEMPOOL_ATTR_RESERVED_MEM_CURRENT = 5, CN_MEMPOOL_ATTR_USED_MEM_CURRENT = 7 };
enum { CN_QUEUE_CAPTURE_STATUS_NONE = 0 };

/* -- structs that we look into -------------------------------------------------------------------------------------- */

typedef struct { char reserved[64]; } CNIpcMemHandle;
typedef struct { int type; uint32_t id; } CNmemLocation;

typedef struct {
    int type, handle_types;
    CNmemLocation location;
    struct { unsigned char compression, security; } flags;
} CNmemAllocationProp;

typedef struct {
    int type, handle_types;
    CNmemLocation location;
    size_t max_size;
    unsigned char reserved[64];
} CNmemPoolProps;

typedef struct {
    unsigned int x, y, z;
    int kernel_class;
    unsigned int reserved;
    CNqueue queue;
    void *attributes;
    unsigned int attribute_count;
} CNinvokeConfig;

_Static_assert(offsetof(CNmemAllocationProp, location) == 8, "ABI of CNmemAllocationProp");
_Static_assert(offsetof(CNinvokeConfig, queue) == 24, "ABI of CNinvokeConfig");

/* -- what the shim gives the generated code ------------------------------------------------------------------------- */

int cndrv_device(void);
int cndrv_device_of(CNdev device);
bool cndrv_may_wait(void *queue);
uint64_t cndrv_context(void);
extern const struct hami_linear cndrv_linear;
extern const struct hami_event_calls cndrv_events;

#endif
