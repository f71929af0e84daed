/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shared_word.c: two processes on the real clock. Both launch on one device's word: together they get its share. Then one
 * waits, suspended, and is woken at once by the futex of the control file; and that futex works in a read-only mapping.
 */
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

void stub_begin(uint32_t devices, uint32_t milli, uint32_t burst_us);
void stub_suspend(uint32_t flag);
_Atomic uint32_t *stub_generation(void);

#define COST_NS UINT64_C(1000000)
#define RUN_NS UINT64_C(2000000000)

static unsigned launches_until(uint64_t end) {
    unsigned count = 0;
    while (hami_now_ns() < end) {
        struct hami_launch launch;
        if (hami_launch_begin(0, 99, 1, true, &launch) != HAMI_OK) {
            exit(9);
        }
        if (launch.sample) {
            hami_launch_observed(0, launch.key, launch.charged_ns, COST_NS);
        }
        count++;
    }
    return count;
}

static bool share_held(void) {
    stub_begin(1, 30000, 0);
    _Atomic uint32_t *counts = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t begin = hami_now_ns();
    for (int i = 0; i < 2; i++) {
        if (fork() == 0) {
            counts[i] = launches_until(begin + RUN_NS);
            _exit(0);
        }
    }
    wait(NULL);
    wait(NULL);
    double span = (double)(hami_now_ns() - begin);
    double busy = (double)(counts[0] + counts[1]) * (double)COST_NS;
    printf(busy <= (span + 60e6) * 0.3 + 4e6 && busy >= 0.2 * (double)RUN_NS && counts[0] != 0 && counts[1] != 0 ? "share held\n" : "share %f of 0.3\n", busy / span);
    return true;
}

static bool woken(void) {
    stub_begin(1, 90000, 0);
    stub_suspend(1);
    _Atomic uint32_t *resumed = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (child == 0) {
        struct hami_launch launch;
        bool admitted = hami_launch_begin(0, 98, 1, true, &launch) == HAMI_OK;
        _exit(admitted && atomic_load(resumed) ? 0 : 1);
    }
    usleep(300000);
    int status = 0;
    if (waitpid(child, &status, WNOHANG) != 0) {
        return false;
    }
    atomic_store(resumed, 1);
    stub_suspend(0);
    syscall(SYS_futex, stub_generation(), FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    waitpid(child, &status, 0);
    printf(status == 0 ? "woken by the agent\n" : "status %d\n", status);
    return true;
}

static void read_only(void) {
    char name[] = "/tmp/hami-control-XXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    if (ftruncate(fd, 4096) != 0) {
        return;
    }
    uint32_t *writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const uint32_t *readable = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    pid_t child = fork();
    if (child == 0) {
        const struct timespec limit = {20, 0};
        _exit(syscall(SYS_futex, readable, FUTEX_WAIT, 0, &limit, NULL, 0) == 0 ? 0 : errno);
    }
    int status = 0;
    for (int i = 0; i < 200 && syscall(SYS_futex, writable, FUTEX_WAKE, 1, NULL, NULL, 0) == 0; i++) {
        usleep(50000);
    }
    waitpid(child, &status, 0);
    printf(WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "read-only\n" : "errno %d\n", WEXITSTATUS(status));
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    share_held();
    if (!woken()) {
        printf("not suspended\n");
    }
    read_only();
    return 0;
}
