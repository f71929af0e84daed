/* SPDX-License-Identifier: Apache-2.0 */
/*
 * play.c: a process that does with the core what its test says, a line at a time: one command on standard input, one answer
 * on standard output. It forks, execs, races, closes its descriptors and dies where it is told to. Every command is also
 * a test of the promise that errno is as it was.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

#define HOLDS 65536
#define MARK 4711

extern char **environ;

#ifdef HAMI_TESTING
extern _Atomic int hami_test_die_at;
extern _Atomic int hami_test_die_visit;
extern _Atomic int hami_test_die_signal;
extern bool hami_test_no_wipe;
#endif

static struct hami_hold holds[HOLDS];
static int count;
static const char *self;
static pid_t child;
static int child_in[2], child_out[2];

static uint64_t number(char **at) {
    return strtoull(*at, at, 0);
}

static void say_hold(enum hami_verdict verdict) {
    printf("%d %d %" PRIu64 "\n", (int)verdict, count, holds[count].bytes);
    count += verdict == HAMI_OK ? 1 : 0;
}

/* -- racing ------------------------------------------------------------------------------------------------------- */

struct race {
    unsigned seed;
    int rounds, device;
    uint64_t most;
    uint64_t refused;
};

static void *racer(void *argument) {
    struct race *race = argument;
    struct hami_hold mine[4] = {{HAMI_NO_DEVICE, 0, 0}, {HAMI_NO_DEVICE, 0, 0}, {HAMI_NO_DEVICE, 0, 0}, {HAMI_NO_DEVICE, 0, 0}};
    for (int i = 0; i < race->rounds; i++) {
        struct hami_hold *hold = &mine[rand_r(&race->seed) % 4];
        hami_give_back(hold);
        uint64_t bytes = 1 + (uint64_t)rand_r(&race->seed) % race->most;
        if (hami_reserve(race->device, bytes, hold) != HAMI_OK) {
            race->refused++;
        } else if (rand_r(&race->seed) % 2 == 0) {
            hami_settle(hold, bytes - (uint64_t)rand_r(&race->seed) % bytes);
        }
        if (i % 8 == 0) {
            sched_yield(); /* with holds in hand: without it a round is over before the next thread has begun */
        }
    }
    for (int i = 0; i < 4; i++) {
        hami_give_back(&mine[i]);
    }
    return NULL;
}

static void race(int threads, int rounds, int device, uint64_t most) {
    pthread_t thread[64];
    struct race races[64];
    uint64_t refused = 0;
    for (int i = 0; i < threads; i++) {
        races[i] = (struct race){.seed = (unsigned)(getpid() * 64 + i), .rounds = rounds, .device = device, .most = most};
        pthread_create(&thread[i], NULL, racer, &races[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
        refused += races[i].refused;
    }
    printf("%" PRIu64 "\n", refused);
}

/* -- children ------------------------------------------------------------------------------------------------------ */

static void loop(void);

/* A child by `how`; afterwards the commands "child <command>" go to it. */
static void start_child(const char *how) {
    if (pipe2(child_in, O_CLOEXEC) != 0 || pipe2(child_out, O_CLOEXEC) != 0) {
        puts("no pipes");
        return;
    }
    char *arguments[] = {(char *)self, NULL};
    if (strcmp(how, "spawn") == 0) {
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, child_in[0], 0);
        posix_spawn_file_actions_adddup2(&actions, child_out[1], 1);
        if (posix_spawn(&child, self, &actions, NULL, arguments, environ) != 0) {
            child = -1;
        }
        posix_spawn_file_actions_destroy(&actions);
    } else if (strcmp(how, "vfork") == 0) {
        child = vfork();
        if (child == 0) {
            dup2(child_in[0], 0);
            dup2(child_out[1], 1);
            execve(self, arguments, environ);
            _exit(1);
        }
    } else {
        bool bare = strcmp(how, "clone") == 0;
        child = bare ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
        if (child == 0) {
            dup2(child_in[0], 0);
            dup2(child_out[1], 1);
            close(child_in[1]);
            if (strcmp(how, "exec") == 0) {
                execve(self, arguments, environ);
            }
            loop();
            _exit(0);
        }
    }
    printf("%d\n", (int)child);
}

static void ask_child(const char *command) {
    char answer[512];
    dprintf(child_in[1], "%s\n", command);
    size_t used = 0;
    while (used + 1 < sizeof answer && read(child_out[0], answer + used, 1) == 1 && answer[used] != '\n') {
        used++;
    }
    answer[used] = '\0';
    puts(answer);
}

static void end_child(void) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    puts("ended");
}

/* Forks while its threads are in the middle of everything; each child must find all its locks open. Answers how many children did well. */
static void fork_race(int children) {
    pthread_t thread[4];
    struct race races[4];
    for (int i = 0; i < 4; i++) {
        races[i] = (struct race){.seed = (unsigned)i, .rounds = 20000, .device = 0, .most = 2500};
        pthread_create(&thread[i], NULL, racer, &races[i]);
    }
    int well = 0;
    for (int i = 0; i < children; i++) {
        pid_t one = fork();
        if (one == 0) {
            struct hami_hold hold;
            alarm(30);
            bool fine = hami_reserve(1, 10, &hold) == HAMI_OK;
            hami_give_back(&hold);
            _exit(fine ? 0 : 1);
        }
        int status = 1;
        waitpid(one, &status, 0);
        well += status == 0 ? 1 : 0;
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
    }
    printf("%d\n", well);
}

/* -- the rest ------------------------------------------------------------------------------------------------------ */

static void close_all(void) {
    for (int fd = 3; fd < 1024; fd++) {
        close(fd);
    }
    puts("closed");
}

static void bench(int rounds) {
    struct hami_hold hold;
    uint64_t best = UINT64_MAX;
    for (int run = 0; run < 5; run++) {
        uint64_t began = hami_now_ns();
        for (int i = 0; i < rounds; i++) {
            hami_reserve(0, 1, &hold);
            hami_give_back(&hold);
        }
        uint64_t took = hami_now_ns() - began;
        best = took < best ? took : best;
    }
    printf("%.1f\n", (double)best / rounds);
}

/* Any system call but read and write ends the process from here on. */
static void sealed(int rounds) {
    struct hami_hold hold;
    hami_reserve(0, 1, &hold);
    hami_give_back(&hold);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    for (int i = 0; i < rounds; i++) {
        hami_reserve(0, 100, &hold);
        hami_settle(&hold, 50);
        hami_memory_view(0);
        hami_give_back(&hold);
    }
    puts("no system call");
}

static void memory_command(const char *name, char *at) {
    if (strcmp(name, "reserve") == 0) {
        int device = (int)strtol(at, &at, 0);
        say_hold(hami_reserve(device, number(&at), &holds[count]));
    } else if (strcmp(name, "virtual") == 0) {
        int device = (int)strtol(at, &at, 0);
        say_hold(hami_reserve_virtual(device, number(&at), &holds[count]));
    } else if (strcmp(name, "rest") == 0) {
        int device = (int)strtol(at, &at, 0);
        uint64_t least = number(&at);
        say_hold(hami_reserve_rest(device, least, number(&at), &holds[count]));
    } else if (strcmp(name, "settle") == 0) {
        uint64_t which = number(&at);
        enum hami_verdict verdict = hami_settle(&holds[which], number(&at));
        printf("%d %" PRIu64 "\n", (int)verdict, holds[which].bytes);
    } else if (strcmp(name, "give") == 0) {
        uint64_t which = number(&at);
        hami_give_back(&holds[which]);
        printf("%" PRIu64 "\n", holds[which].bytes);
    } else if (strcmp(name, "view") == 0) {
        struct hami_memory_view view = hami_memory_view((int)strtol(at, NULL, 0));
        printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %d\n", view.total, view.used, view.free, view.limited);
    } else {
        printf("unknown command %s\n", name);
    }
}

static void other_command(const char *name, char *at) {
    char first[128] = "", second[128] = "";
    if (strcmp(name, "find") == 0) {
        sscanf(at, "%127s %127s", first, second);
        printf("%d\n", hami_device_find(first, second));
    } else if (strcmp(name, "info") == 0) {
        printf("%d %" PRIu32 " %d %u\n", hami_policy_usable(), hami_policy_generation(), hami_device_count(), (unsigned)hami_gate());
    } else if (strcmp(name, "note") == 0) {
        hami_export_note(at, strlen(at), 1);
        puts("noted");
    } else if (strcmp(name, "known") == 0) {
        printf("%d\n", hami_export_known(at, strlen(at)));
    } else if (strcmp(name, "measure") == 0) {
        int device = (int)strtol(at, &at, 0);
        hami_measure_begin();
        hami_context_measured(device, number(&at));
        hami_measure_end();
        puts("measured");
    } else if (strcmp(name, "begin") == 0) {
        hami_measure_begin();
        puts("begun");
    } else if (strcmp(name, "context") == 0) {
        printf("%" PRIu64 "\n", hami_context_bytes((int)strtol(at, NULL, 0)));
    } else if (strcmp(name, "nest") == 0) {
        bool outer = hami_enter(), inner = hami_enter();
        hami_leave();
        printf("%d %d\n", outer, inner);
    } else {
        memory_command(name, at);
    }
}

static void process_command(const char *name, char *at) {
    if (strcmp(name, "race") == 0) {
        int threads = (int)number(&at);
        int rounds = (int)number(&at);
        int device = (int)number(&at);
        race(threads, rounds, device, number(&at));
    } else if (strcmp(name, "forkrace") == 0) {
        fork_race((int)number(&at));
    } else if (strcmp(name, "start") == 0) {
        start_child(at + strspn(at, " "));
    } else if (strcmp(name, "child") == 0) {
        ask_child(at + strspn(at, " "));
    } else if (strcmp(name, "end") == 0) {
        end_child();
    } else if (strcmp(name, "exec") == 0) {
        execve(self, (char *[]){(char *)self, NULL}, environ);
    } else if (strcmp(name, "become") == 0) {
        execl("/bin/cat", "cat", (char *)NULL);
    } else if (strcmp(name, "closeall") == 0) {
        close_all();
    } else if (strcmp(name, "bench") == 0) {
        bench((int)number(&at));
    } else if (strcmp(name, "sealed") == 0) {
        sealed((int)number(&at));
#ifdef HAMI_TESTING
    } else if (strcmp(name, "die") == 0) {
        hami_test_die_at = (int)number(&at);
        hami_test_die_visit = (int)number(&at);
        puts("armed");
    } else if (strcmp(name, "stop") == 0) {
        hami_test_die_signal = SIGSTOP;
        puts("stops instead");
    } else if (strcmp(name, "oldkernel") == 0) {
        hami_test_no_wipe = true;
        puts("old");
#endif
    } else {
        errno = MARK;
        other_command(name, at);
        if (errno != MARK) {
            printf("errno became %d\n", errno);
        }
    }
}

static void loop(void) {
    char line[512];
    size_t used = 0;
    while (read(0, line + used, 1) == 1) {
        if (line[used] != '\n') {
            used += used + 2 < sizeof line ? 1 : 0;
            continue;
        }
        line[used] = '\0';
        used = 0;
        char name[16] = "";
        int length = 0;
        sscanf(line, "%15s%n", name, &length);
        process_command(name, line + length);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    (void)argc;
    self = argv[0];
    setvbuf(stdout, NULL, _IOFBF, 4096);
    loop();
    return 0;
}
