/* SPDX-License-Identifier: Apache-2.0 */
/* cndrv_shim.h: what the files of this shim ask of each other. */
#ifndef HAMI_CNDRV_SHIM_H
#define HAMI_CNDRV_SHIM_H

#include "cndrv_api.h"

CNdev cndrv_current(void); /* the device of the calling thread's context, -1 when there is none */
void cndrv_settled(void);  /* pools may have given memory back: read them again */

#endif
