/* SPDX-License-Identifier: Apache-2.0 */
/* The acme driver's types, written from its manual, and what this front end provides to the generated wrappers. */
#ifndef ACME_API_H
#define ACME_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { ACME_OK = 0, ACME_OUT_OF_MEMORY = 2, ACME_NOT_PERMITTED = 5, ACME_NOT_FOUND = 7 } acmeResult;
typedef uint64_t acmePointer;

struct hami_linear;
struct hami_event_calls;

int acme_device(void);
bool acme_may_wait(void *stream);
uint64_t acme_context(void);
extern const struct hami_linear acme_linear;
extern const struct hami_event_calls acme_events;

#endif
