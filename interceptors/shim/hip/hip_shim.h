/* SPDX-License-Identifier: Apache-2.0 */
/* hip_shim.h: what the files of this shim ask of each other. */
#ifndef HAMI_HIP_SHIM_H
#define HAMI_HIP_SHIM_H

int hip_ordinal(void);  /* the calling thread's device as HIP numbers it, -1 when there is none */
void hip_settled(void); /* pools may have given memory back: read them again */

#endif
