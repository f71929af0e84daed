/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy.c: which policy is in effect, and which of its records a device is. Fails closed: without a policy that was read
 * whole and checked, every device is refused. A policy that is damaged *later* leaves the one before it in effect.
 *
 * The agent renames a new policy into place first and then moves the control file's generation; a process that sees the
 * new generation therefore finds the new policy. Suspending moves the generation too, with the policy as it was.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "internal.h"

#define WHY_ROOM 512
#define TRIES 4 /* for an agent that is between its two steps; then what is there is taken */
#define DEVELOPMENT_ROOM 3072

static const _Atomic uint32_t never_read = 1; /* the gate's word is 0 before the first look: they differ */
static const _Atomic uint32_t closed_for_good = 0;

struct hami_gate hami_gate_cache = {.generation = &never_read, .word = 0};
_Atomic(const struct hami_policy *) hami_policy_now;

static _Atomic(const struct hami_control_file *) control_now;
static _Atomic(const char *) directory_now;
static char development[DEVELOPMENT_ROOM];

const struct hami_control_file *hami_control(void) {
    return atomic_load_explicit(&control_now, memory_order_acquire);
}

const char *hami_directory(void) {
    return atomic_load_explicit(&directory_now, memory_order_acquire);
}

/* The node's folder if there is one, whatever it holds; only where there is none may a developer name another. */
static const char *choose_directory(void) {
    struct stat found;
    if (lstat(HAMI_DIRECTORY "/policy", &found) == 0 || errno != ENOENT) {
        return HAMI_DIRECTORY;
    }
    const char *named = secure_getenv("HAMI_DEVELOPMENT_POLICY");
    if (named == NULL || named[0] == '\0') {
        hami_say_once("no policy", "there is no policy in %s/policy: every device is refused; the container was not prepared by the node's agent", HAMI_DIRECTORY);
        return NULL;
    }
    if (strlen(named) >= sizeof development) {
        hami_say_once("no policy", "the path in HAMI_DEVELOPMENT_POLICY is too long: every device is refused");
        return NULL;
    }
    strcpy(development, named); /* the program may change its environment */
    hami_say_once("development", "DEVELOPMENT POLICY from %s (HAMI_DEVELOPMENT_POLICY): these limits bind nobody who can set an environment variable", development);
    return development;
}

static bool suspended(const struct hami_control_file *control) {
    uint32_t flags = atomic_load(&control->flags);
    for (size_t i = 0; i < HAMI_MAX_DEVICES; i++) {
        flags |= atomic_load_explicit(&control->devices[i].flags, memory_order_relaxed);
    }
    return (flags & HAMI_CONTROL_FLAG_SUSPENDED) != 0;
}

static uint32_t gate_flags(const struct hami_policy *policy, const struct hami_control_file *control) {
    if (policy == NULL) {
        return HAMI_GATE_LIMITED;
    }
    uint32_t flags = HAMI_GATE_USABLE;
    for (size_t i = 0; i < policy->header.device_count; i++) {
        if (policy->devices[i].core_milli != HAMI_CORE_UNLIMITED) {
            flags |= HAMI_GATE_LIMITED;
        }
    }
    if ((policy->header.flags & HAMI_POLICY_FLAG_ADVISORY) != 0) {
        flags |= HAMI_GATE_ADVISORY;
    }
    if (suspended(control)) {
        flags |= HAMI_GATE_SUSPENDED | HAMI_GATE_LIMITED;
    }
    return flags;
}

/* The word first, its generation after: who sees the new address sees the new word. */
static uint32_t set_gate(const _Atomic uint32_t *generation, uint32_t seen, uint32_t flags) {
    atomic_store_explicit(&hami_gate_cache.word, (uint64_t)seen << 32 | flags, memory_order_release);
    atomic_store_explicit(&hami_gate_cache.generation, generation, memory_order_release);
    return flags;
}

static uint32_t close_for_good(const char *why) {
    if (why != NULL) {
        hami_say_once("no policy", "%s: every device is refused; ask the node's agent to prepare the container again", why);
    }
    return set_gate(&closed_for_good, 0, HAMI_GATE_LIMITED);
}

/* True once the agent's files have been found; else the gate is shut for as long as this process lives. */
static bool find_files(void) {
    if (hami_control() != NULL) {
        return true;
    }
    const char *directory = choose_directory();
    if (directory == NULL) {
        close_for_good(NULL);
        return false;
    }
    char why[WHY_ROOM];
    const struct hami_control_file *control = hami_control_map(directory, why, sizeof why);
    if (control == NULL) {
        close_for_good(why);
        return false;
    }
    atomic_store_explicit(&directory_now, directory, memory_order_release);
    atomic_store_explicit(&control_now, control, memory_order_release);
    return true;
}

static bool same_policy(const struct hami_policy *one, const struct hami_policy *other) {
    return one != NULL && other != NULL && one->header.generation == other->header.generation && one->header.checksum == other->header.checksum;
}

/* The policy for the control file's generation; NULL with the reason when none that can be used is there. `seen` is the generation it goes with. */
static const struct hami_policy *newest(const struct hami_control_file *control, uint32_t *seen, char *why, size_t length) {
    const struct hami_policy *policy = NULL;
    for (int i = 0; i < TRIES; i++) {
        *seen = atomic_load_explicit(&control->generation, memory_order_acquire);
        const struct hami_policy *current = atomic_load(&hami_policy_now);
        if (current != NULL && (uint32_t)current->header.generation == *seen) {
            return current; /* only the control file went back and forth */
        }
        hami_policy_forget(policy);
        policy = hami_policy_read(hami_directory(), why, length);
        if (policy == NULL || (uint32_t)policy->header.generation == *seen) {
            return policy;
        }
        hami_sleep_until(hami_now_ns() + UINT64_C(20000));
    }
    return policy;
}

static uint32_t read_anew(void) {
    const struct hami_control_file *control = hami_control();
    const struct hami_policy *before = atomic_load(&hami_policy_now);
    char why[WHY_ROOM] = "";
    uint32_t seen = 0;
    const struct hami_policy *policy = newest(control, &seen, why, sizeof why);
    if (policy == NULL && before == NULL) {
        hami_say_once("no policy", "%s: every device is refused until the node's agent writes a good one", why);
    } else if (policy == NULL) {
        hami_say_once("damaged policy", "%s: the policy before it stays in effect", why);
        policy = before;
    } else if (!same_policy(policy, before)) {
        atomic_store_explicit(&hami_policy_now, policy, memory_order_release);
    } else if (policy != before) {
        hami_policy_forget(policy);
        policy = before;
    }
    return set_gate(&control->generation, seen, gate_flags(policy, control));
}

uint32_t hami_gate_refresh(void) {
    HAMI_KEEP_ERRNO;
    struct hami_process *process = hami_process();
    hami_local_lock(&process->policy_lock);
    const _Atomic uint32_t *generation = atomic_load(&hami_gate_cache.generation);
    uint64_t word = atomic_load(&hami_gate_cache.word);
    uint32_t flags = (uint32_t)word;
    if ((uint32_t)(word >> 32) != atomic_load(generation)) { /* nobody did it while we waited */
        flags = find_files() ? read_anew() : HAMI_GATE_LIMITED;
    }
    hami_local_unlock(&process->policy_lock);
    return flags;
}

/* ASCII only: a program's locale must not decide which device is meant. */
static char lower(char letter) {
    return letter >= 'A' && letter <= 'Z' ? (char)(letter - 'A' + 'a') : letter;
}

/* `field` is NUL-padded and may fill its room without a NUL. An empty field is no name. */
static bool same_text(const char *field, size_t room, const char *text) {
    if (field[0] == '\0') {
        return false;
    }
    for (size_t i = 0; i < room; i++) {
        if (lower(field[i]) != lower(text[i])) {
            return false;
        }
        if (text[i] == '\0') {
            return true;
        }
    }
    return text[room] == '\0';
}

static bool declares(const struct hami_policy_device *device, const char *kind, const char *value) {
    for (size_t i = 0; i < HAMI_MAX_IDENTITIES; i++) {
        const struct hami_identity *identity = &device->identities[i];
        if (same_text(identity->kind, sizeof identity->kind, kind) && same_text(identity->value, sizeof identity->value, value)) {
            return true;
        }
    }
    return false;
}

int hami_device_find(const char *kind, const char *value) {
    const struct hami_policy *policy = hami_policy();
    if (policy == NULL || kind == NULL || value == NULL) {
        return HAMI_NO_DEVICE;
    }
    for (uint32_t i = 0; i < policy->header.device_count; i++) {
        if (declares(&policy->devices[i], kind, value)) {
            return (int)i;
        }
    }
    return HAMI_NO_DEVICE;
}

uint32_t hami_policy_generation(void) {
    if ((hami_gate() & HAMI_GATE_USABLE) == 0) {
        return 0;
    }
    uint32_t generation = atomic_load_explicit(&hami_control()->generation, memory_order_acquire);
    return generation != 0 ? generation : UINT32_MAX; /* wrapped round: 0 means that there is no policy */
}

const struct hami_policy_device *hami_device_policy(int device) {
    const struct hami_policy *policy = hami_policy();
    if (policy == NULL || device < 0 || (uint32_t)device >= policy->header.device_count) {
        return NULL;
    }
    return &policy->devices[device];
}

int hami_device_count(void) {
    const struct hami_policy *policy = hami_policy();
    return policy == NULL ? 0 : (int)policy->header.device_count;
}

bool hami_policy_usable(void) {
    return (hami_gate() & HAMI_GATE_USABLE) != 0;
}
