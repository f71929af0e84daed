/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: contexts. A process's first context on a device costs `context_mib` (300) of it until its last one goes. */
#include "fake_cuda.h"

_Thread_local struct CUctx_st *fc_stack[64];
_Thread_local int fc_depth;
static struct CUctx_st *contexts; /* never freed: a stale handle shall be recognised, not read after free */

bool fc_context_alive(const struct CUctx_st *context)
{
    for (const struct CUctx_st *at = contexts; at != NULL; at = at->next)
        if (at == context)
            return at->alive;
    return false;
}

CUresult fc_current(struct CUctx_st **context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    *context = fc_depth > 0 ? fc_stack[fc_depth - 1] : NULL;
    if (*context == NULL)
        return CUDA_ERROR_INVALID_CONTEXT;
    return __atomic_load_n(&(*context)->alive, __ATOMIC_ACQUIRE) ? fc_known((*context)->device) : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

static CUresult pay(struct fc_device *device)
{
    if (device->contexts++ > 0)
        return CUDA_SUCCESS;
    device->context_bytes = hf_u64("device", device->card, "context_mib", 300) << 20;
    CUresult result = fc_code(card_take(device->card, device->context_bytes, CARD_CONTEXT));
    device->contexts -= result != CUDA_SUCCESS;
    return result;
}

static CUresult make(CUdevice device, unsigned flags, bool primary, struct CUctx_st **made)
{
    CUresult result = pay(&fc_devices[device]);
    if (result != CUDA_SUCCESS)
        return result;
    struct CUctx_st *context = calloc(1, sizeof *context);
    *context = (struct CUctx_st){.device = device, .primary = primary, .alive = true, .flags = flags, .id = fc_next_id(), .next = contexts};
    contexts = context;
    *made = context;
    return CUDA_SUCCESS;
}

static void end(struct CUctx_st *context)
{
    struct fc_device *device = &fc_devices[context->device];
    fc_context_memory_gone(context);
    fc_context_arrays_gone(context);
    fc_context_streams_gone(context);
    fc_context_heaps_gone(context);
    __atomic_store_n(&context->alive, false, __ATOMIC_RELEASE);
    if (--device->contexts == 0) {
        fc_pools_trim(context->device);
        card_give(device->card, device->context_bytes, CARD_CONTEXT);
    }
}

/* -- primary contexts --------------------------------------------------------------------------------------- */

CUresult fake_cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice index)
{
    CUresult result = context == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(index);
    if (result != CUDA_SUCCESS)
        return result;
    struct fc_device *device = &fc_devices[index];
    fc_lock();
    if (device->primary == NULL || !device->primary->alive)
        result = make(index, device->primary_flags, true, &device->primary);
    if (result == CUDA_SUCCESS) {
        device->retained++;
        *context = device->primary;
    }
    return fc_unlock(result);
}

static CUresult let_go(CUdevice index, bool wholly)
{
    CUresult result = fc_known(index);
    if (result != CUDA_SUCCESS)
        return result;
    struct fc_device *device = &fc_devices[index];
    fc_lock();
    bool active = device->primary != NULL && device->primary->alive;
    if (!active)
        return fc_unlock(wholly ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT);
    device->retained -= device->retained > 0;
    if (wholly || device->retained == 0) {
        device->retained = 0;
        end(device->primary);
    }
    return fc_unlock(CUDA_SUCCESS);
}

CUresult fake_cuDevicePrimaryCtxRelease_v2(CUdevice device) { return let_go(device, false); }
CUresult fake_cuDevicePrimaryCtxRelease(CUdevice device) { return let_go(device, false); }
CUresult fake_cuDevicePrimaryCtxReset_v2(CUdevice device) { return let_go(device, true); }
CUresult fake_cuDevicePrimaryCtxReset(CUdevice device) { return let_go(device, true); }

CUresult fake_cuDevicePrimaryCtxGetState(CUdevice device, unsigned int *flags, int *active)
{
    CUresult result = flags == NULL || active == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result == CUDA_SUCCESS) {
        *flags = fc_devices[device].primary_flags;
        *active = fc_devices[device].primary != NULL && fc_devices[device].primary->alive;
    }
    return result;
}

CUresult fake_cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags)
{
    CUresult result = fc_known(device);
    if (result == CUDA_SUCCESS)
        fc_devices[device].primary_flags = flags;
    return result;
}

/* -- contexts of one's own ---------------------------------------------------------------------------------- */

static CUresult push(struct CUctx_st *context)
{
    if (fc_depth == (int)(sizeof fc_stack / sizeof *fc_stack))
        return CUDA_ERROR_INVALID_CONTEXT;
    fc_stack[fc_depth++] = context;
    return CUDA_SUCCESS;
}

CUresult fake_cuCtxCreate_v2(CUcontext *context, unsigned int flags, CUdevice device)
{
    CUresult result = context == NULL ? CUDA_ERROR_INVALID_VALUE : fc_known(device);
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    result = make(device, flags, false, context);
    fc_unlock(result);
    return result == CUDA_SUCCESS ? push(*context) : result;
}

CUresult fake_cuCtxCreate(CUcontext *context, unsigned int flags, CUdevice device) { return fake_cuCtxCreate_v2(context, flags, device); }

CUresult fake_cuCtxCreate_v3(CUcontext *context, void *affinity, int count, unsigned int flags, CUdevice device)
{
    (void)affinity;
    (void)count;
    return fake_cuCtxCreate_v2(context, flags, device);
}

CUresult fake_cuCtxCreate_v4(CUcontext *context, void *parameters, unsigned int flags, CUdevice device)
{
    (void)parameters;
    return fake_cuCtxCreate_v2(context, flags, device);
}

CUresult fake_cuCtxDestroy_v2(CUcontext context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    if (!fc_context_alive(context) || context->primary)
        return fc_unlock(CUDA_ERROR_INVALID_CONTEXT);
    end(context);
    fc_unlock(CUDA_SUCCESS);
    if (fc_depth > 0 && fc_stack[fc_depth - 1] == context)
        fc_depth--;
    return CUDA_SUCCESS;
}

CUresult fake_cuCtxDestroy(CUcontext context) { return fake_cuCtxDestroy_v2(context); }

CUresult fake_cuCtxPushCurrent_v2(CUcontext context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    return fc_context_alive(context) ? push(context) : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult fake_cuCtxPopCurrent_v2(CUcontext *context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (fc_depth == 0)
        return CUDA_ERROR_INVALID_CONTEXT;
    fc_depth--;
    if (context != NULL)
        *context = fc_stack[fc_depth];
    return CUDA_SUCCESS;
}

CUresult fake_cuCtxPushCurrent(CUcontext context) { return fake_cuCtxPushCurrent_v2(context); }
CUresult fake_cuCtxPopCurrent(CUcontext *context) { return fake_cuCtxPopCurrent_v2(context); }

CUresult fake_cuCtxSetCurrent(CUcontext context)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    if (context != NULL && !fc_context_alive(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    if (fc_depth > 0)
        fc_depth--;
    return context != NULL ? push(context) : CUDA_SUCCESS;
}

CUresult fake_cuCtxGetCurrent(CUcontext *context)
{
    CUresult result = context == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result == CUDA_SUCCESS)
        *context = fc_depth > 0 ? fc_stack[fc_depth - 1] : NULL;
    return result;
}

CUresult fake_cuCtxGetDevice(CUdevice *device)
{
    struct CUctx_st *context;
    CUresult result = device == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result == CUDA_SUCCESS)
        *device = context->device;
    return result;
}

CUresult fake_cuCtxGetDevice_v2(CUdevice *device, CUcontext context)
{
    if (context == NULL)
        return fake_cuCtxGetDevice(device);
    if (device == NULL || !fc_context_alive(context))
        return CUDA_ERROR_INVALID_CONTEXT;
    *device = context->device;
    return CUDA_SUCCESS;
}

CUresult fake_cuCtxGetId(CUcontext context, unsigned long long *id)
{
    CUresult result = context == NULL ? fc_current(&context) : fc_context_alive(context) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
    if (result == CUDA_SUCCESS)
        *id = context->id;
    return result;
}

CUresult fake_cuCtxGetApiVersion(CUcontext context, unsigned int *version)
{
    (void)context;
    *version = 3020;
    return fc_ready();
}

CUresult fake_cuCtxGetFlags(unsigned int *flags)
{
    struct CUctx_st *context;
    CUresult result = flags == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result == CUDA_SUCCESS)
        *flags = context->flags;
    return result;
}

CUresult fake_cuCtxGetStreamPriorityRange(int *least, int *greatest)
{
    if (least != NULL)
        *least = 0;
    if (greatest != NULL)
        *greatest = -5;
    return fc_ready();
}

CUresult fake_cuCtxSynchronize(void)
{
    struct CUctx_st *context;
    CUresult result = fc_current(&context);
    return result == CUDA_SUCCESS ? fc_context_done(context) : result;
}

CUresult fake_cuCtxSynchronize_v2(CUcontext context)
{
    if (context == NULL)
        return fake_cuCtxSynchronize();
    return fc_context_alive(context) ? fc_context_done(context) : CUDA_ERROR_INVALID_CONTEXT;
}
