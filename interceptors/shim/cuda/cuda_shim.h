/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_shim.h: what the hand-written files of the CUDA front end promise each other.
 *
 * Order of locks: a pool's, the graph memory's and the context table's own mutex may be held over a driver call, since the
 * driver never calls back into them; no lock of the core ever is.
 */
#ifndef HAMI_CUDA_SHIM_H
#define HAMI_CUDA_SHIM_H

#include "cuda_hooks.h"

#pragma GCC visibility push(hidden)

#define CUDA_MIB (1024ull * 1024ull)
#define CUDA_DEVICES 64 /* ordinals that we remember; the driver's own bound is lower */

static inline uint64_t cuda_round_up(uint64_t bytes, uint64_t unit) { return bytes > UINT64_MAX - unit ? UINT64_MAX : (bytes + unit - 1) / unit * unit; }
static inline uint64_t cuda_key(const void *handle) { return (uint64_t)(uintptr_t)handle; }

/* forks.c: a forked child inherits locks that other threads held, and holds that are its parent's: all of it is made new. */
void cuda_watch_forks(void); /* before the first lock or hold of any file here */
void cuda_device_reset(void);
void cuda_pools_reset(void);
void cuda_graphs_reset(void);
void cuda_contexts_reset(void);
void cuda_captures_reset(void);

/* device.c */
bool cuda_there(CUdevice device);     /* the driver knows it: false before cuInit and for an ordinal that is none */
bool cuda_current(CUdevice *device);  /* the calling thread's device; false when it has no context: the driver will say so itself */
int cuda_index(CUdevice device);      /* policy index of a driver ordinal, HAMI_NO_DEVICE when no record declares it */
int cuda_current_index(void);
bool cuda_flag(int device, uint32_t flag); /* does the policy's record carry it? */

/* memory.c: reserve; when the limit is reached, let idle pool and graph memory go and try once more. */
enum hami_verdict cuda_reserve(int device, uint64_t bytes, struct hami_hold *hold);

/* pools.c */
void cuda_pools_settle(void);         /* after a point where the driver may have let memory go: charge what the pools hold now */
bool cuda_pools_release(int device);  /* give idle memory of the pools back to the driver; true if anything was charged less */
void cuda_pools_forget(int device);   /* the device was reset: its pools are gone */

/* graphs.c */
void cuda_graph_grow(CUgraph graph, int device, uint64_t bytes); /* the graph has one more memory node of this size */
CUresult cuda_graph_launch(CUgraphExec exec, CUresult (*call)(CUgraphExec, CUstream), CUstream stream); /* with leave for its memory */
bool cuda_graph_memory_release(int device); /* trim; true if anything was charged less */
void cuda_graph_memory_forget(int device);  /* charge what the driver still has: something that used it is gone */

/* capture.c */
bool cuda_capturing(CUstream stream);
bool cuda_captures(void); /* perhaps some stream of this process is being captured */
void cuda_capture_allocated(CUstream stream, int device, uint64_t bytes);

/* vmm.c: a handle from outside this container: its mappings are charged. */
void cuda_foreign_handle(CUmemGenericAllocationHandle handle);

/* measure.c: what the whole card holds now, by its management library (needs no context); false when it cannot be asked. */
bool cuda_card_used(CUdevice device, uint64_t *bytes);
bool cuda_uuid_text(CUdevice device, const char *prefix, char *text, size_t room);

#pragma GCC visibility pop

#endif
