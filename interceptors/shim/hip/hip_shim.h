/* SPDX-License-Identifier: Apache-2.0 */
/* hip_shim.h: what the files of this shim ask of each other. */
#ifndef HAMI_HIP_SHIM_H
#define HAMI_HIP_SHIM_H

int hip_ordinal(void);  /* the calling thread's device as HIP numbers it, -1 when there is none */
void hip_settled(void); /* pools may have given memory back: read them again */

void hip_graph_memory_freed(int ordinal); /* graph memory may have gone back to the device */
hipError_t hip_graph_captured(hipMallocFromPoolAsync_fn real, void **out, size_t bytes, hipMemPool_t pool, hipStream_t stream); /* memory on a captured stream */
hipError_t hip_graph_launch(hipGraphExec_t exec, hipError_t (*call)(hipGraphExec_t, hipStream_t), hipStream_t stream);

#endif
