/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ascend_api.h: CANN's runtime library as far as it concerns us, written from facts: names, numbers and layouts of the ABI.
 * Handles are opaque, enumerations are ints, and a struct appears only where a hook or the fake driver looks inside it.
 */
#ifndef HAMI_ASCEND_API_H
#define HAMI_ASCEND_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hami_core.h"

typedef int32_t rtError_t;
enum {
    ACL_RT_SUCCESS = 0,
    ACL_ERROR_RT_PARAM_INVALID = 107000,
    ACL_ERROR_RT_INVALID_DEVICEID = 107001,
    ACL_ERROR_RT_CONTEXT_NULL = 107002,
    ACL_ERROR_RT_FEATURE_NOT_SUPPORT = 207000,
    ACL_ERROR_RT_MEMORY_ALLOCATION = 207001,
    ACL_ERROR_RT_NO_PERMISSION = 207006,
};

typedef uint32_t rtMemType_t;
typedef void *rtContext_t;
typedef void *rtStream_t;
typedef void *rtEvent_t;
typedef void *rtModel_t;
typedef void *rtMemPool_t;
typedef void *rtDrvMemHandle;

enum { RT_MEMORY_HOST = 0x81, RT_MEMORY_HOST_SVM = 0x90, RT_MEMORY_KIND = 0xff };
enum { RT_MEM_SIDE_HOST = 0, RT_MEM_SIDE_DEVICE = 1 };
enum { RT_EVENT_TIME_LINE = 0x08, RT_EVENT_RECORDED = 1, RT_STREAM_CAPTURE_STATUS_NONE = 0 };
enum { RT_MEM_POOL_RESERVED_CURRENT = 5, RT_MEM_POOL_USED_CURRENT = 7 };

/* -- structs that we look into -------------------------------------------------------------------------------------- */

typedef struct {
    uint32_t side, device, module, page_type, memory_type;
    uint64_t reserve;
} rtDrvMemProp_t;

typedef struct rtMemPoolProps rtMemPoolProps;

_Static_assert(offsetof(rtDrvMemProp_t, device) == 4 && offsetof(rtDrvMemProp_t, reserve) == 24, "ABI of rtDrvMemProp_t");

/* -- what the shim gives the generated code ------------------------------------------------------------------------- */

int ascend_device(void);
int ascend_device_of(int32_t device);
bool ascend_may_wait(void *stream);
uint64_t ascend_context(void);
extern const struct hami_linear ascend_linear;
extern const struct hami_event_calls ascend_events;

#endif
