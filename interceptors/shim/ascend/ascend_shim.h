/* SPDX-License-Identifier: Apache-2.0 */
/* ascend_shim.h: what the files of this shim ask of each other. */
#ifndef HAMI_ASCEND_SHIM_H
#define HAMI_ASCEND_SHIM_H

void ascend_settled(void); /* pools may have given memory back: read them again */

#endif
