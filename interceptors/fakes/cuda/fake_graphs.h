/* SPDX-License-Identifier: Apache-2.0 */
/* The inside of the fake CUDA driver's graphs: what graphs.c makes and graph_exec.c runs. */
#ifndef FAKE_GRAPHS_H
#define FAKE_GRAPHS_H

#include "fake_cuda.h"

enum { NODE_KERNEL = 0, NODE_GRAPH = 4, NODE_EMPTY = 5, NODE_ALLOC = 10, NODE_FREE = 11 };

struct CUgraphNode_st {
    int type, device;
    uint64_t duration_ns, bytes;
    uint32_t permille;
    CUdeviceptr pointer;
    struct CUgraph_st *child;
    struct CUgraphNode_st *next;
};

struct CUgraph_st {
    uint64_t id;
    struct CUgraphNode_st *nodes, **end;
};

#endif
