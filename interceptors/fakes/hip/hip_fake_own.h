/* SPDX-License-Identifier: Apache-2.0 */
/* hip_fake_own.h: what the files of this fake ask of each other. */
#ifndef HAMI_FAKE_HIP_OWN_H
#define HAMI_FAKE_HIP_OWN_H

#include "hip_fake.h"

/* Exports that are made of others call them by name, through whatever stands before them. */
HAMI_FAKE_EXPORT hipError_t hipGraphAddMemAllocNode(hipGraphNode_t *node, hipGraph_t graph, const hipGraphNode_t *before, size_t count, hipMemAllocNodeParams *wanted);

hipError_t hip_fake_ready(int device);
int hip_fake_place(int device); /* in the machine, of a device as this process sees it */
bool hip_fake_graph_free(const void *address); /* false: no graph's memory */
bool hip_fake_capturing(hipStream_t stream);
hipError_t hip_fake_capture(int device, uint64_t bytes, void **out);

#endif
