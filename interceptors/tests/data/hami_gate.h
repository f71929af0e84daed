/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in for core/hami_gate.h where the recording core stands in for the core. */
#ifndef HAMI_GATE_H
#define HAMI_GATE_H

#include "hami_core.h"

static inline bool hami_gate_open(void) {
    return !hami_compute_limited();
}

#endif
