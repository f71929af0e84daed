/* SPDX-License-Identifier: Apache-2.0 */
/*
 * processes.c: lists of processes show the container's own.
 *
 * The library may answer PIDs of the host's namespace, where a number says nothing to us. So a process counts as ours when it
 * has a place in our /proc and there the same control group as this process. When not one of a list's numbers does, the list
 * is in a namespace that we do not know, and passes as it is: nothing may be concluded from it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nvml_hooks.h"

#define GROUP 1024

static size_t group_of(unsigned int pid, char *group) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%u/cgroup", pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, group, GROUP);
    (void)close(file);
    return length > 0 ? (size_t)length : 0;
}

static bool is_ours(unsigned int pid, const char *own, size_t length) {
    char group[GROUP];
    return group_of(pid, group) == length && memcmp(group, own, length) == 0;
}

static unsigned int pid_at(const char *entries, size_t stride, unsigned int i) {
    unsigned int pid;
    memcpy(&pid, entries + (size_t)i * stride, sizeof pid); /* the first field of every version */
    return pid;
}

static void keep_ours(void *list, size_t stride, unsigned int *count) {
    char own[GROUP], *entries = list;
    size_t length = group_of((unsigned int)getpid(), own);
    unsigned int kept = 0;
    if (entries == NULL || length == 0 || !hami_policy_usable()) return;
    for (unsigned int i = 0; i < *count; i++) kept += is_ours(pid_at(entries, stride, i), own, length);
    if (kept == 0) return;
    kept = 0;
    for (unsigned int i = 0; i < *count; i++) {
        if (!is_ours(pid_at(entries, stride, i), own, length)) continue;
        memmove(entries + kept * stride, entries + i * stride, stride);
        kept++;
    }
    *count = kept;
}

static nvmlReturn_t filtered(nvmlReturn_t result, void *list, size_t stride, unsigned int *count) {
    if (result == NVML_SUCCESS && count != NULL) keep_ours(list, stride, count);
    return result;
}

#define LIST(name, entry)                                                                                                             \
    nvmlReturn_t nvml_hook_##name(name##_fn real, nvmlDevice_t device, unsigned int *count, entry *list) {                             \
        return filtered(real(device, count, list), list, sizeof *list, count);                                                         \
    }

LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_v2_t)

nvmlReturn_t nvml_hook_nvmlDeviceGetRunningProcessDetailList(nvmlDeviceGetRunningProcessDetailList_fn real, nvmlDevice_t device, nvmlProcessDetailList_t *list) {
    nvmlReturn_t result = real(device, list);
    return list == NULL ? result : filtered(result, list->processes, sizeof *list->processes, &list->count);
}
