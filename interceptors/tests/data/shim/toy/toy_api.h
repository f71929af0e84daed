/* SPDX-License-Identifier: Apache-2.0 */
/* The toy driver API: its types, and what the hand-written half of its front end provides. */
#ifndef TOY_API_H
#define TOY_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { TOY_OK = 0, TOY_OUT_OF_MEMORY = 2, TOY_REFUSED = 8, TOY_MISSING = 9 } toyResult;
typedef uint64_t toyPointer;
typedef struct toyStream_s *toyStream;

struct hami_linear;
struct hami_event_calls;

int toy_device(void);
bool toy_may_wait(void *stream);
uint64_t toy_context(void);
uint64_t toy_array_taken(toyPointer array);
toyStream toy_stream_of_thread(toyStream stream);
extern const struct hami_linear toy_linear;
extern const struct hami_event_calls toy_events;

#endif
