/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The card: what all fake libraries that play one machine share, so that they agree and so that tests have an oracle.
 *
 * It is the file `<machine file>.card`, made by whoever comes first and mapped by every process. It holds, per device, what
 * each process holds physically, what each container holds and the most it ever held, and (hami_card_time.h) when the device
 * was busy and for whom. A container is the value of HAMI_GRANT at the process's first call, "-" without one. Memory of
 * processes that are gone is swept before every admission, so a high-water mark never counts the dead.
 *
 * Keys of a device that the card obeys, read again whenever the machine file changes:
 *
 *     memory_mib, memory_reserved_mib, memory_used_mib     capacity is the first less the others
 *     health = lost                                        every admission answers CARD_LOST
 *     fail_next_alloc = N                                  the next N admissions answer CARD_FULL (counted anew at every change of the file)
 *     oom_after_bytes = N                                  the device is full at N bytes
 *     slow_ms = N                                          every admission takes that long
 *     utilization_window_ms = 200, utilization_lag_ms = 100
 *
 * and of `[machine]`: `host_pid_offset`, what a host's PID is above the one the process sees; `clock = virtual` when the card
 * is made: time stands still until somebody waits for a kernel, and then is there at once.
 */
#ifndef HAMI_CARD_H
#define HAMI_CARD_H

#include "hami_fake.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifndef F_OFD_SETLKW
#define F_OFD_SETLKW 38
#endif

enum { CARD_VERSION = 1, CARD_DEVICES = 16, CARD_PROCESSES = 1280, CARD_CONTAINERS = 256, CARD_SPANS = 4096, CARD_RUNNING = 128 };
enum card_kind { CARD_LINEAR, CARD_POOL, CARD_HANDLE, CARD_ARRAY, CARD_MANAGED, CARD_CONTEXT, CARD_GRAPH, CARD_OTHER, CARD_KINDS };
enum card_answer { CARD_OK, CARD_FULL, CARD_LOST, CARD_NO_ROOM /* the card's own tables are full: a test too large for it */ };

struct card_process {
    int64_t pid; /* 0: free */
    int64_t host_pid;
    uint64_t start_ticks;
    uint64_t image;         /* where its stack begins: another after an exec, which gives all memory back; 0: not known */
    uint64_t pid_namespace; /* inode: only who shares it can tell that this process is gone */
    uint32_t container;
    uint32_t claimed; /* counts up, so that spans of an earlier owner of this slot are told apart */
};

struct card_container {
    uint64_t used;
    uint64_t high_water;
    uint64_t busy_ns; /* scheduled, times the share of the device it took */
};

/* A stretch of time that one process (or, on the device's own track, anybody) kept the device busy for `busy_ns` of. */
struct card_span {
    uint64_t start, finish, busy_ns, serial;
    uint32_t process, claimed;
};

struct card_track {
    uint64_t next; /* serial of the next span: its place is serial % CARD_SPANS */
    struct card_span spans[CARD_SPANS];
};

struct card_running {
    uint64_t finish;
    uint32_t permille, process; /* of which process: its place in the table, + 1 */
};

struct card_device {
    uint64_t capacity, used, high_water, refused, window_ns, lag_ns;
    int64_t faults_armed_at, faults_left;
    uint64_t bytes[CARD_PROCESSES][CARD_KINDS];
    uint64_t last_span[CARD_PROCESSES]; /* serial + 1 of the span that may still grow; 0: none */
    struct card_container containers[CARD_CONTAINERS];
    uint64_t last_start, tail, busy_ns, kernels;
    struct card_running running[CARD_RUNNING];
    struct card_track device_track, process_track;
};

struct card {
    uint32_t version, ready;
    pthread_mutex_t mutex;
    uint64_t swept; /* processes whose memory was taken back */
    uint64_t clock; /* the virtual time, shared by all processes; 0: the real clock */
    char containers[CARD_CONTAINERS][192];
    struct card_process processes[CARD_PROCESSES];
    struct card_device devices[CARD_DEVICES];
};

HF_SHARED struct card *card_shared;
HF_SHARED int card_slot = -1;    /* this process's own slot … */
HF_SHARED int64_t card_slot_pid; /* … and the process it was claimed by: after a fork it is another */
HF_SHARED pthread_mutex_t card_once = PTHREAD_MUTEX_INITIALIZER;

/* ns: CLOCK_MONOTONIC, or the card's own clock where the machine file says `clock = virtual`: that stands still until somebody waits. */
static inline uint64_t card_now(void)
{
    struct timespec now;
    uint64_t own = card_shared == NULL ? 0 : __atomic_load_n(&card_shared->clock, __ATOMIC_RELAXED);
    if (own != 0)
        return own;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* -- the file ----------------------------------------------------------------------------------------------- */

static inline void card_initialise(struct card *card)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&card->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    snprintf(card->containers[0], sizeof card->containers[0], "-");
    card->clock = strcmp(hf_str("machine", -1, "clock", "real"), "virtual") == 0 ? 1 : 0;
    card->version = CARD_VERSION;
    card->ready = 1;
}

/* Map the card at `path`, made if need be; NULL when that is not possible. */
static inline struct card *card_map(const char *path)
{
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    struct stat found;
    void *map = MAP_FAILED;
    if (file < 0)
        return NULL;
    if (fcntl(file, F_OFD_SETLKW, &lock) == 0 && fstat(file, &found) == 0) {
        (void)fchmod(file, 0666); /* a container may run as any user; only the owner can, and need, do this */
        if (found.st_size == (off_t)sizeof(struct card) || ftruncate(file, sizeof(struct card)) == 0)
            map = mmap(NULL, sizeof(struct card), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (map != MAP_FAILED && !((struct card *)map)->ready)
            card_initialise(map);
    }
    lock.l_type = F_UNLCK; /* by hand: the mapping keeps the open file, and with it the lock */
    (void)fcntl(file, F_OFD_SETLKW, &lock);
    close(file);
    return map == MAP_FAILED ? NULL : map;
}

/* Read the machine that the environment variable `env` names, and take its card. 0, or -1: there is none. */
static inline int card_load(const char *env)
{
    char path[4096];
    if (hf_load(env) != 0)
        return -1;
    if (__atomic_load_n(&card_shared, __ATOMIC_ACQUIRE) != NULL)
        return 0;
    snprintf(path, sizeof path, "%s.card", getenv(env));
    pthread_mutex_lock(&card_once);
    if (card_shared == NULL)
        __atomic_store_n(&card_shared, card_map(path), __ATOMIC_RELEASE);
    pthread_mutex_unlock(&card_once);
    return card_shared != NULL ? 0 : -1;
}

/* -- who lives ---------------------------------------------------------------------------------------------- */

/* What tells one life of a PID from the next. */
struct card_life {
    uint64_t start_ticks, image;
};

/* False when there is no such process. A zombie's memory is gone, so it counts as dead. */
static inline bool card_alive(int64_t pid, struct card_life *life)
{
    char path[64], text[1024], *rest = NULL;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    if (length <= 0)
        return false;
    text[length] = '\0';
    char *after_name = strrchr(text, ')'); /* the name may hold anything */
    if (after_name == NULL)
        return false;
    char *word = strtok_r(after_name + 1, " ", &rest);
    if (word == NULL || *word == 'Z' || *word == 'X')
        return false;
    for (int field = 3; word != NULL && field <= 28; field++, word = strtok_r(NULL, " ", &rest)) {
        if (field == 22)
            life->start_ticks = strtoull(word, NULL, 10);
        if (field == 28)
            life->image = strtoull(word, NULL, 10);
    }
    return true;
}

static inline bool card_same_life(const struct card_process *process, const struct card_life *life)
{
    bool same_image = process->image == 0 || life->image <= 1 || process->image <= 1 || process->image == life->image;
    return process->start_ticks == life->start_ticks && same_image;
}

static inline uint64_t card_namespace(void)
{
    struct stat found;
    return stat("/proc/self/ns/pid", &found) == 0 ? (uint64_t)found.st_ino : 0;
}

static inline void card_forget(struct card *card, int slot)
{
    for (int d = 0; d < CARD_DEVICES; d++) {
        struct card_device *device = &card->devices[d];
        for (int kind = 0; kind < CARD_KINDS; kind++) {
            device->used -= device->bytes[slot][kind];
            device->containers[card->processes[slot].container].used -= device->bytes[slot][kind];
            device->bytes[slot][kind] = 0;
        }
        device->last_span[slot] = 0;
    }
    card->processes[slot].pid = 0;
}

static inline void card_sweep(struct card *card)
{
    uint64_t own = card_namespace();
    struct card_life life = {0, 0};
    for (int i = 0; i < CARD_PROCESSES; i++) {
        const struct card_process *process = &card->processes[i];
        if (process->pid == 0 || process->pid_namespace != own || (i == card_slot && process->pid == getpid()))
            continue;
        if (!card_alive(process->pid, &life) || !card_same_life(process, &life)) {
            card_forget(card, i);
            card->swept++;
        }
    }
}

/* Whoever died in the middle of a change left sums that may be wrong: they follow from what the processes hold. */
static inline void card_recount(struct card *card)
{
    for (int d = 0; d < CARD_DEVICES; d++) {
        struct card_device *device = &card->devices[d];
        device->used = 0;
        for (int c = 0; c < CARD_CONTAINERS; c++)
            device->containers[c].used = 0;
        for (int i = 0; i < CARD_PROCESSES; i++)
            for (int kind = 0; kind < CARD_KINDS; kind++) {
                device->used += device->bytes[i][kind];
                device->containers[card->processes[i].container].used += device->bytes[i][kind];
            }
    }
}

/*
 * The mutex, waited for in slices: a thread that was woken and then killed before it had a robust mutex takes the wake-up with
 * it if a third was quicker, and who sleeps then would sleep for ever once nobody else contends.
 */
static inline int card_wait_for(pthread_mutex_t *mutex)
{
    int error = pthread_mutex_trylock(mutex);
    while (error == EBUSY || error == ETIMEDOUT) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 20000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        error = pthread_mutex_timedlock(mutex, &until);
    }
    return error;
}

static inline struct card *card_lock(void)
{
    struct card *card = card_shared;
    if (card_wait_for(&card->mutex) == EOWNERDEAD) {
        pthread_mutex_consistent(&card->mutex);
        card_recount(card);
    }
    return card;
}

static inline void card_unlock(struct card *card)
{
    pthread_mutex_unlock(&card->mutex);
}

static inline int card_container_index(struct card *card, const char *name)
{
    for (int i = 0; i < CARD_CONTAINERS; i++) {
        if (card->containers[i][0] == '\0')
            snprintf(card->containers[i], sizeof card->containers[i], "%s", name);
        if (strncmp(card->containers[i], name, sizeof card->containers[i] - 1) == 0)
            return i;
    }
    return -1;
}

/* The slot of the calling process, claimed if it has none yet; -1 when the card's tables are full. With the lock held. */
static inline int card_me(struct card *card)
{
    int64_t pid = getpid();
    struct card_life life = {0, 0};
    uint64_t own = card_namespace();
    int hole = -1;
    if (card_slot >= 0 && card_slot_pid == pid)
        return card_slot;
    (void)card_alive(pid, &life);
    for (int i = 0; i < CARD_PROCESSES; i++) {
        const struct card_process *process = &card->processes[i];
        if (process->pid == pid && process->pid_namespace == own) {
            hole = i;
            if (!card_same_life(process, &life))
                card_forget(card, i);
            break; /* else: another fake library of this process has claimed it */
        }
        hole = hole < 0 && process->pid == 0 ? i : hole;
    }
    const char *grant = getenv("HAMI_GRANT");
    int container = card_container_index(card, grant != NULL && grant[0] != '\0' ? grant : "-");
    if (hole < 0 || container < 0)
        return -1;
    struct card_process *mine = &card->processes[hole];
    if (mine->pid == 0)
        *mine = (struct card_process){.pid = pid, .host_pid = pid + hf_int("machine", -1, "host_pid_offset", 0), .start_ticks = life.start_ticks,
                                      .image = life.image, .pid_namespace = own, .container = (uint32_t)container, .claimed = mine->claimed + 1};
    card_slot = hole;
    card_slot_pid = pid;
    return hole;
}

/* -- memory ------------------------------------------------------------------------------------------------- */

static inline bool card_lost(int device)
{
    return strcmp(hf_str("device", device, "health", "ok"), "lost") == 0;
}

/* Take over what the machine file says of this device now. With the lock held. */
static inline void card_settings(struct card_device *device, int index)
{
    uint64_t total = hf_u64("device", index, "memory_mib", 0);
    uint64_t away = hf_u64("device", index, "memory_reserved_mib", 0) + hf_u64("device", index, "memory_used_mib", 0);
    int64_t changed = (int64_t)hf_seen.st_mtim.tv_sec * 1000000000 + hf_seen.st_mtim.tv_nsec;
    device->capacity = (total > away ? total - away : 0) << 20;
    device->window_ns = hf_u64("device", index, "utilization_window_ms", 200) * 1000000u;
    device->lag_ns = hf_u64("device", index, "utilization_lag_ms", 100) * 1000000u;
    if (device->faults_armed_at != changed) {
        device->faults_armed_at = changed;
        device->faults_left = hf_int("device", index, "fail_next_alloc", 0);
    }
}

/* Physical memory for this process, or why not. */
static inline enum card_answer card_take(int index, uint64_t bytes, enum card_kind kind)
{
    int64_t slow_ms = hf_int("device", index, "slow_ms", 0);
    if (slow_ms > 0)
        nanosleep(&(struct timespec){.tv_sec = slow_ms / 1000, .tv_nsec = slow_ms % 1000 * 1000000}, NULL);
    if (card_lost(index))
        return CARD_LOST;
    struct card *card = card_lock();
    struct card_device *device = &card->devices[index];
    card_sweep(card);
    card_settings(device, index);
    uint64_t most = hf_u64("device", index, "oom_after_bytes", device->capacity);
    most = most < device->capacity ? most : device->capacity;
    enum card_answer answer = CARD_OK;
    int me = card_me(card);
    if (me < 0)
        answer = CARD_NO_ROOM;
    else if (device->faults_left > 0) {
        device->faults_left--;
        answer = CARD_FULL;
    } else if (device->used > most || bytes > most - device->used)
        answer = CARD_FULL;
    if (answer == CARD_OK) {
        struct card_container *container = &device->containers[card->processes[me].container];
        device->bytes[me][kind] += bytes;
        device->used += bytes;
        container->used += bytes;
        device->high_water = device->used > device->high_water ? device->used : device->high_water;
        container->high_water = container->used > container->high_water ? container->used : container->high_water;
    } else
        device->refused++;
    card_unlock(card);
    return answer;
}

static inline void card_give(int index, uint64_t bytes, enum card_kind kind)
{
    struct card *card = card_lock();
    struct card_device *device = &card->devices[index];
    int me = card_me(card);
    uint64_t held = me < 0 ? 0 : device->bytes[me][kind];
    bytes = bytes < held ? bytes : held; /* a forked child frees what is its parent's: nothing of its own goes */
    if (me >= 0) {
        device->bytes[me][kind] -= bytes;
        device->used -= bytes;
        device->containers[card->processes[me].container].used -= bytes;
    }
    card_unlock(card);
}

/* The capacity and what all living processes hold of it now. */
static inline void card_memory(int index, uint64_t *capacity, uint64_t *used)
{
    struct card *card = card_lock();
    card_sweep(card);
    card_settings(&card->devices[index], index);
    *capacity = card->devices[index].capacity;
    *used = card->devices[index].used;
    card_unlock(card);
}

static inline uint64_t card_held(const struct card_device *device, int slot)
{
    uint64_t held = 0;
    for (int kind = 0; kind < CARD_KINDS; kind++)
        held += device->bytes[slot][kind];
    return held;
}

#endif
