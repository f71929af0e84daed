/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The card's clockwork: when kernels run, and what a management library would say of it.
 *
 * A device starts kernels in the order in which they were launched, from whichever process. One that needs the whole device
 * waits for all before it; smaller ones run beside each other as long as their shares add up to at most one device. Start and
 * finish are known at launch, so nobody has to simulate anything: waiting is sleeping until `finish`.
 */
#ifndef HAMI_CARD_TIME_H
#define HAMI_CARD_TIME_H

#include "hami_card.h"

#define CARD_SPAN_NS 2000000u /* short kernels of one process are remembered together, at most this long */

struct card_kernel {
    uint64_t start, finish; /* CLOCK_MONOTONIC, ns */
};

/* Note `busy` ns of work in [start, finish), in the span with serial `*open` - 1 if that is recent enough, else in a new one. */
static inline void card_note(struct card_track *track, uint64_t *open, struct card_span what)
{
    struct card_span *last = *open != 0 ? &track->spans[(*open - 1) % CARD_SPANS] : NULL;
    if (last != NULL && last->serial == *open && what.start >= last->start && what.finish - last->start <= CARD_SPAN_NS) {
        last->finish = what.finish > last->finish ? what.finish : last->finish;
        last->busy_ns += what.busy_ns;
        return;
    }
    what.serial = *open = track->next + 1;
    track->spans[track->next++ % CARD_SPANS] = what;
}

/* The earliest time at or after `start` at which `permille` of the device is free, and a place to remember it. */
static inline uint64_t card_room(struct card_device *device, uint64_t start, uint32_t permille, struct card_running **place)
{
    for (;;) {
        uint32_t taken = 0;
        struct card_running *first = NULL;
        *place = NULL;
        for (int i = 0; i < CARD_RUNNING; i++) {
            struct card_running *running = &device->running[i];
            if (running->finish <= start)
                *place = running;
            else {
                taken += running->permille;
                first = first == NULL || running->finish < first->finish ? running : first;
            }
        }
        if (*place != NULL && taken + permille <= 1000)
            return start;
        start = first->finish;
    }
}

/*
 * Run a kernel for `duration` ns on `permille` of the device, not before `tail` (what its stream has to do before it).
 * False: the card's tables are full.
 */
static inline bool card_run(int index, uint64_t tail, uint64_t duration, uint32_t permille, struct card_kernel *kernel)
{
    struct card *card = card_lock();
    struct card_device *device = &card->devices[index];
    struct card_running *place;
    int me = card_me(card);
    if (me >= 0) {
        uint64_t now = card_now(), start = tail > now ? tail : now, from;
        permille = permille == 0 || permille > 1000 ? 1000 : permille;
        start = card_room(device, start > device->last_start ? start : device->last_start, permille, &place);
        *kernel = (struct card_kernel){.start = start, .finish = start + duration};
        *place = (struct card_running){.finish = kernel->finish, .permille = permille, .process = (uint32_t)me + 1};
        device->last_start = start;
        device->kernels++;
        uint64_t work = duration * permille / 1000;
        device->containers[card->processes[me].container].busy_ns += work;
        struct card_span span = {.start = start, .finish = kernel->finish, .busy_ns = work, .process = (uint32_t)me, .claimed = card->processes[me].claimed};
        card_note(&device->process_track, &device->last_span[me], span);
        from = device->tail > start ? device->tail : start;
        if (kernel->finish > from) { /* only what nobody else already fills counts for the device */
            uint64_t open = device->device_track.next;
            device->busy_ns += kernel->finish - from;
            card_note(&device->device_track, &open, (struct card_span){.start = from, .finish = kernel->finish, .busy_ns = kernel->finish - from});
            device->tail = kernel->finish;
        }
    }
    card_unlock(card);
    return me >= 0;
}

/*
 * When an event is over that is recorded now in a stream that has work until `tail`. Devices are given to one process after
 * the other, with all it has queued, so that an event too waits for the kernels of other processes that fill the device; for
 * those of its own process in other streams it does not wait.
 */
static inline uint64_t card_mark(int index, uint64_t tail)
{
    struct card *card = card_lock();
    const struct card_device *device = &card->devices[index];
    int me = card_me(card);
    uint64_t now = card_now(), at = tail > now ? tail : now;
    for (;;) {
        uint64_t first = UINT64_MAX;
        uint32_t taken = 0;
        for (int i = 0; i < CARD_RUNNING; i++) {
            const struct card_running *running = &device->running[i];
            if (running->finish <= at || (int)running->process == me + 1)
                continue;
            taken += running->permille;
            first = running->finish < first ? running->finish : first;
        }
        if (taken < 1000) {
            card_unlock(card);
            return at;
        }
        at = first;
    }
}

/* Work in [from, to) of one process (`slot` >= 0), or of the whole track. */
static inline uint64_t card_busy(const struct card *card, const struct card_track *track, int slot, uint64_t from, uint64_t to)
{
    uint64_t busy = 0;
    for (uint64_t i = track->next; i > 0 && i + CARD_SPANS > track->next; i--) {
        const struct card_span *span = &track->spans[(i - 1) % CARD_SPANS];
        if (slot >= 0 && ((int)span->process != slot || span->claimed != card->processes[slot].claimed))
            continue;
        uint64_t first = span->start > from ? span->start : from, last = span->finish < to ? span->finish : to;
        if (last > first)
            busy += (uint64_t)((double)span->busy_ns * (double)(last - first) / (double)(span->finish - span->start));
    }
    return busy;
}

/* Whole percent over the last window, as old as the machine says; of one process, or (-1) of the device. With the lock held. */
static inline unsigned card_percent(const struct card *card, int index, int slot)
{
    const struct card_device *device = &card->devices[index];
    uint64_t now = card_now(), to = now > device->lag_ns ? now - device->lag_ns : 0, from = to > device->window_ns ? to - device->window_ns : 0;
    if (device->window_ns == 0)
        return 0;
    uint64_t busy = card_busy(card, slot >= 0 ? &device->process_track : &device->device_track, slot, from, to);
    uint64_t percent = busy * 100 / device->window_ns;
    return percent > 100 ? 100 : (unsigned)percent;
}

static inline unsigned card_utilization(int index)
{
    struct card *card = card_lock();
    card_settings(&card->devices[index], index);
    unsigned percent = card_percent(card, index, -1);
    card_unlock(card);
    return percent;
}

struct card_user {
    uint32_t host_pid;
    uint64_t bytes;
    unsigned percent;
};

/* Who uses the device: at most `room` into `users`; answers how many there are. */
static inline unsigned card_users(int index, struct card_user *users, unsigned room)
{
    struct card *card = card_lock();
    unsigned found = 0;
    card_sweep(card);
    card_settings(&card->devices[index], index);
    for (int i = 0; i < CARD_PROCESSES; i++) {
        uint64_t bytes = card->processes[i].pid != 0 ? card_held(&card->devices[index], i) : 0;
        if (bytes == 0)
            continue;
        if (found < room)
            users[found] = (struct card_user){.host_pid = (uint32_t)card->processes[i].host_pid, .bytes = bytes, .percent = card_percent(card, index, i)};
        found++;
    }
    card_unlock(card);
    return found;
}

/* Sleep until a moment of card_now(); a virtual clock is moved there instead, and never back. */
static inline void card_wait(uint64_t until)
{
    uint64_t own = card_shared == NULL ? 0 : __atomic_load_n(&card_shared->clock, __ATOMIC_RELAXED);
    while (own != 0 && own < until)
        if (__atomic_compare_exchange_n(&card_shared->clock, &own, until, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return;
    if (own != 0)
        return;
    struct timespec deadline = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR)
        ;
}

#endif
