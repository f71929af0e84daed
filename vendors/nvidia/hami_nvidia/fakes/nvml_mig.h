/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The MIG half of the fake NVML, included by nvml.c once.
 *
 * Profiles come from sections `[profile INDEX]` of the machine file, INDEX being NVML's profile *enum*, which is not the
 * profile's `id`. Instances block memory slices on a line of eight. Creating without a placement takes the first start
 * that is free, which need not be the one the caller had in mind.
 */
#ifndef NVML_MIG_H
#define NVML_MIG_H

static int64_t profile_int(int profile, const char *key) { return hf_int("profile", profile, key, 0); }

static int has_profile(int profile)
{
    return profile >= 0 && profile < hf_count("profile") && hf_get("profile", profile, "id") != NULL;
}

/* The profile with this id, or -1. */
static int profile_by_id(uint id)
{
    for (int profile = 0; profile < hf_count("profile"); profile++)
        if (has_profile(profile) && (uint)profile_int(profile, "id") == id)
            return profile;
    return -1;
}

/* Fills `starts`; returns how many places instances of this profile may begin at. */
static uint profile_starts(int profile, uint starts[MEMORY_SLICES])
{
    char list[HF_VALUE];
    char *rest = NULL;
    uint count = 0;
    snprintf(list, sizeof list, "%s", hf_str("profile", profile, "starts", ""));
    for (char *item = strtok_r(list, ",", &rest); item != NULL && count < MEMORY_SLICES; item = strtok_r(NULL, ",", &rest))
        starts[count++] = (uint)atoi(item);
    return count;
}

static int place_free(const struct gpu *gpu, uint start, uint size)
{
    for (int i = 0; i < MAX_GIS; i++) {
        const struct gi *gi = &gpu->gi[i];
        if (gi->used && start < gi->place.start + gi->place.size && gi->place.start < start + size)
            return 0;
    }
    return 1;
}

static uint instances_left(const struct gpu *gpu, int profile)
{
    uint starts[MEMORY_SLICES], left = 0, made = 0;
    uint count = profile_starts(profile, starts), size = (uint)profile_int(profile, "size");
    for (uint i = 0, next = 0; i < count; i++)
        if (starts[i] >= next && place_free(gpu, starts[i], size)) {
            left++;
            next = starts[i] + size;
        }
    for (int i = 0; i < MAX_GIS; i++)
        made += gpu->gi[i].used && gpu->gi[i].profile == profile;
    uint most = (uint)profile_int(profile, "instances");
    return made >= most ? 0 : left < most - made ? left : most - made;
}

#define ENTER_MIG(device, ...)                                        \
    do {                                                              \
        ENTER(device, __VA_ARGS__);                                   \
        if (hf_count("profile") == 0 || lacks((device)->gpu, "mig"))  \
            return NOT_SUPPORTED;                                     \
    } while (0)

/* -- mode --------------------------------------------------------------------------------------------------- */

HF_EXPORT int nvmlDeviceGetMigMode(dev_t_ device, uint *current, uint *pending)
{
    ENTER_MIG(device, current, pending);
    *current = *pending = (uint)mig_on(device->gpu);
    return OK;
}

HF_EXPORT int nvmlDeviceSetMigMode(dev_t_ device, uint mode, int *activation)
{
    ENTER_MIG(device, activation);
    if (mode > 1)
        return INVALID_ARGUMENT;
    *activation = OK;
    for (int i = 0; i < MAX_GIS; i++)
        if (device->gpu->gi[i].used && mode == 0)
            *activation = IN_USE;
    if (*activation == OK)
        device->gpu->mig = mode ? 1 : -1;
    return OK;
}

/* -- GPU instances ------------------------------------------------------------------------------------------ */

HF_EXPORT int nvmlDeviceGetGpuInstanceProfileInfo(dev_t_ device, uint profile, gi_profile_t *info)
{
    ENTER_MIG(device, info);
    int p = (int)profile;
    if (!has_profile(p))
        return profile > 17 ? INVALID_ARGUMENT : NOT_SUPPORTED;
    *info = (gi_profile_t){
        .id = (uint)profile_int(p, "id"), .slices = (uint)profile_int(p, "slices"), .instances = (uint)profile_int(p, "instances"),
        .sms = (uint)profile_int(p, "sms"), .copy = (uint)profile_int(p, "slices"), .ofa = (uint)profile_int(p, "ofa"),
        .memoryMB = (uint64_t)profile_int(p, "memory_mib"),
    };
    return OK;
}

HF_EXPORT int nvmlDeviceGetGpuInstanceProfileInfoV(dev_t_ device, uint profile, gi_profile_v2_t *info)
{
    gi_profile_t plain;
    ENTER_MIG(device, info);
    if (info->version != 0x02000098u)
        return VERSION_MISMATCH;
    int status = nvmlDeviceGetGpuInstanceProfileInfo(device, profile, &plain);
    if (status != OK)
        return status;
    *info = (gi_profile_v2_t){
        .version = info->version, .id = plain.id, .slices = plain.slices, .instances = plain.instances, .sms = plain.sms, .copy = plain.copy,
        .ofa = plain.ofa, .memoryMB = plain.memoryMB,
    };
    snprintf(info->name, sizeof info->name, "MIG %s", hf_str("profile", (int)profile, "name", ""));
    return OK;
}

HF_EXPORT int nvmlDeviceGetGpuInstancePossiblePlacements_v2(dev_t_ device, uint id, placement_t *places, uint *count)
{
    uint starts[MEMORY_SLICES];
    ENTER_MIG(device, count);
    int profile = profile_by_id(id);
    if (profile < 0)
        return INVALID_ARGUMENT;
    uint room = *count;
    *count = profile_starts(profile, starts);
    for (uint i = 0; places != NULL && i < *count && i < room; i++)
        places[i] = (placement_t){.start = starts[i], .size = (uint)profile_int(profile, "size")};
    return places != NULL && room < *count ? INSUFFICIENT_SIZE : OK;
}

HF_EXPORT int nvmlDeviceGetGpuInstanceRemainingCapacity(dev_t_ device, uint id, uint *count)
{
    ENTER_MIG(device, count);
    int profile = profile_by_id(id);
    if (profile < 0)
        return INVALID_ARGUMENT;
    *count = mig_on(device->gpu) ? instances_left(device->gpu, profile) : 0;
    return OK;
}

static int create_gi(struct gpu *gpu, int profile, uint start, struct gi **made)
{
    uint size = (uint)profile_int(profile, "size");
    if (instances_left(gpu, profile) == 0 || !place_free(gpu, start, size))
        return INSUFFICIENT_RESOURCES;
    for (int i = 0; i < MAX_GIS; i++)
        if (!gpu->gi[i].used) {
            gpu->gi[i] = (struct gi){.used = 1, .id = (uint)i + 1, .profile = profile, .place = {start, size}, .gpu = gpu};
            *made = &gpu->gi[i];
            return OK;
        }
    return INSUFFICIENT_RESOURCES;
}

static int may_create(dev_t_ device, uint id)
{
    if (!mig_on(device->gpu))
        return NOT_SUPPORTED;
    return profile_by_id(id) < 0 ? INVALID_ARGUMENT : OK;
}

HF_EXPORT int nvmlDeviceCreateGpuInstanceWithPlacement(dev_t_ device, uint id, const placement_t *place, struct gi **made)
{
    uint starts[MEMORY_SLICES];
    ENTER_MIG(device, place, made);
    int status = may_create(device, id), profile = profile_by_id(id);
    if (status != OK)
        return status;
    uint count = profile_starts(profile, starts);
    for (uint i = 0; i < count; i++)
        if (starts[i] == place->start && place->size == (uint)profile_int(profile, "size"))
            return create_gi(device->gpu, profile, place->start, made);
    return INVALID_ARGUMENT;
}

HF_EXPORT int nvmlDeviceCreateGpuInstance(dev_t_ device, uint id, struct gi **made)
{
    uint starts[MEMORY_SLICES];
    ENTER_MIG(device, made);
    int status = may_create(device, id), profile = profile_by_id(id);
    if (status != OK)
        return status;
    uint count = profile_starts(profile, starts);
    status = INSUFFICIENT_RESOURCES;
    for (uint i = 0; i < count && status != OK; i++)
        status = create_gi(device->gpu, profile, starts[i], made);
    return status;
}

static int check_gi(const struct gi *gi)
{
    int status = ready();
    if (status != OK)
        return status;
    const char *first = (const char *)gpus, *at = (const char *)gi;
    if (at < first || at >= first + sizeof gpus)
        return INVALID_ARGUMENT;
    return gi->used ? condition(gi->gpu->index) : NOT_FOUND;
}

HF_EXPORT int nvmlGpuInstanceDestroy(struct gi *gi)
{
    int status = check_gi(gi);
    for (int i = 0; status == OK && i < MAX_CIS; i++)
        if (gi->ci[i].used)
            status = IN_USE;
    if (status == OK)
        gi->used = 0;
    return status;
}

HF_EXPORT int nvmlDeviceGetGpuInstances(dev_t_ device, uint id, struct gi **instances, uint *count)
{
    ENTER_MIG(device, instances, count);
    int profile = profile_by_id(id);
    if (profile < 0)
        return INVALID_ARGUMENT;
    *count = 0;
    for (int i = 0; i < MAX_GIS; i++)
        if (device->gpu->gi[i].used && device->gpu->gi[i].profile == profile)
            instances[(*count)++] = &device->gpu->gi[i];
    return OK;
}

HF_EXPORT int nvmlDeviceGetGpuInstanceById(dev_t_ device, uint id, struct gi **instance)
{
    ENTER_MIG(device, instance);
    if (id == 0 || id > MAX_GIS || !device->gpu->gi[id - 1].used)
        return NOT_FOUND;
    *instance = &device->gpu->gi[id - 1];
    return OK;
}

HF_EXPORT int nvmlGpuInstanceGetInfo(struct gi *gi, gi_info_t *info)
{
    int status = info == NULL ? INVALID_ARGUMENT : check_gi(gi);
    if (status == OK)
        *info = (gi_info_t){.device = &gpu_handles[gi->gpu->index], .id = gi->id, .profileId = (uint)profile_int(gi->profile, "id"), .place = gi->place};
    return status;
}

/* -- compute instances: profile N is the one of as many slices as the enum says; its id is N --------------------- */

static uint ci_slices(uint profile)
{
    static const uint slices[] = {1, 2, 3, 4, 7, 8, 6, 1};
    return profile < sizeof slices / sizeof *slices ? slices[profile] : 0;
}

HF_EXPORT int nvmlGpuInstanceGetComputeInstanceProfileInfo(struct gi *gi, uint profile, uint engine, ci_profile_t *info)
{
    int status = info == NULL || engine != 0 ? INVALID_ARGUMENT : check_gi(gi);
    if (status != OK)
        return status;
    uint whole = (uint)profile_int(gi->profile, "slices"), slices = ci_slices(profile);
    if (slices == 0 || slices > whole || profile == 7)
        return NOT_SUPPORTED;
    uint sms = (uint)profile_int(gi->profile, "sms") * slices / whole;
    *info = (ci_profile_t){.id = profile, .slices = slices, .instances = whole / slices, .sms = sms, .copy = whole};
    return OK;
}

HF_EXPORT int nvmlGpuInstanceCreateComputeInstance(struct gi *gi, uint profile, struct ci **made)
{
    ci_profile_t info;
    int status = made == NULL ? INVALID_ARGUMENT : nvmlGpuInstanceGetComputeInstanceProfileInfo(gi, profile, 0, &info);
    if (status != OK)
        return status;
    uint taken = 0;
    int hole = -1;
    for (int i = MAX_CIS - 1; i >= 0; i--) {
        taken += gi->ci[i].used ? gi->ci[i].size : 0;
        hole = gi->ci[i].used ? hole : i;
    }
    if (hole < 0 || taken + info.slices > (uint)profile_int(gi->profile, "slices"))
        return INSUFFICIENT_RESOURCES;
    gi->ci[hole] = (struct ci){.used = 1, .id = (uint)hole, .profile = profile, .start = taken, .size = info.slices, .serial = ++mig_serial, .gi = gi};
    *made = &gi->ci[hole];
    mig_handles[gi->gpu->index][(gi->id - 1) * MAX_CIS + (uint)hole] = (struct handle){.gpu = gi->gpu, .ci = *made};
    return OK;
}

HF_EXPORT int nvmlGpuInstanceCreateComputeInstanceWithPlacement(struct gi *gi, uint profile, const placement_t *place, struct ci **made)
{
    return place == NULL ? INVALID_ARGUMENT : nvmlGpuInstanceCreateComputeInstance(gi, profile, made);
}

static int check_ci(const struct ci *ci)
{
    const char *first = (const char *)gpus, *at = (const char *)ci;
    int status = ready();
    if (status != OK)
        return status;
    if (at < first || at >= first + sizeof gpus)
        return INVALID_ARGUMENT;
    return ci->used ? condition(ci->gi->gpu->index) : NOT_FOUND;
}

HF_EXPORT int nvmlComputeInstanceDestroy(struct ci *ci)
{
    int status = check_ci(ci);
    if (status == OK)
        ci->used = 0; /* the MIG device's handle and UUID end here; the next one gets new ones */
    return status;
}

HF_EXPORT int nvmlComputeInstanceGetInfo_v2(struct ci *ci, ci_info_t *info)
{
    int status = info == NULL ? INVALID_ARGUMENT : check_ci(ci);
    if (status == OK)
        *info = (ci_info_t){.device = &gpu_handles[ci->gi->gpu->index], .gi = ci->gi, .id = ci->id, .profileId = ci->profile, .place = {ci->start, ci->size}};
    return status;
}

HF_EXPORT int nvmlGpuInstanceGetComputeInstances(struct gi *gi, uint profile, struct ci **instances, uint *count)
{
    int status = instances == NULL || count == NULL ? INVALID_ARGUMENT : check_gi(gi);
    if (status != OK)
        return status;
    *count = 0;
    for (int i = 0; i < MAX_CIS; i++)
        if (gi->ci[i].used && gi->ci[i].profile == profile)
            instances[(*count)++] = &gi->ci[i];
    return OK;
}

/* -- MIG devices -------------------------------------------------------------------------------------------- */

HF_EXPORT int nvmlDeviceIsMigDeviceHandle(dev_t_ device, uint *is)
{
    ENTER(device, is);
    *is = device->ci != NULL;
    return OK;
}

HF_EXPORT int nvmlDeviceGetGpuInstanceId(dev_t_ device, uint *id)
{
    ENTER(device, id);
    if (device->ci == NULL)
        return INVALID_ARGUMENT;
    *id = device->ci->gi->id;
    return OK;
}

HF_EXPORT int nvmlDeviceGetComputeInstanceId(dev_t_ device, uint *id)
{
    ENTER(device, id);
    if (device->ci == NULL)
        return INVALID_ARGUMENT;
    *id = device->ci->id;
    return OK;
}

HF_EXPORT int nvmlDeviceGetMaxMigDeviceCount(dev_t_ device, uint *count)
{
    ENTER_MIG(device, count);
    *count = MAX_GIS - 1;
    return OK;
}

/* Holes are NOT_FOUND: indices are given out first come, first served, and stay while a device lives. */
HF_EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(dev_t_ device, uint index, dev_t_ *mig)
{
    ENTER_MIG(device, mig);
    if (index >= MAX_GIS - 1)
        return INVALID_ARGUMENT;
    for (int i = 0; i < MAX_CIS; i++)
        if (device->gpu->gi[index].used && device->gpu->gi[index].ci[i].used) {
            *mig = &mig_handles[device->gpu->index][index * MAX_CIS + (uint)i];
            return OK;
        }
    return NOT_FOUND;
}

HF_EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(dev_t_ mig, dev_t_ *device)
{
    ENTER(mig, device);
    *device = &gpu_handles[mig->gpu->index];
    return mig->ci != NULL ? OK : INVALID_ARGUMENT;
}

HF_EXPORT int nvmlDeviceGetAttributes_v2(dev_t_ device, attributes_t *attributes)
{
    ENTER(device, attributes);
    if (device->ci == NULL)
        return NOT_SUPPORTED;
    int profile = device->ci->gi->profile;
    *attributes = (attributes_t){
        .sms = (uint)profile_int(profile, "sms"), .giSlices = (uint)profile_int(profile, "slices"), .ciSlices = device->ci->size,
        .memoryMB = (uint64_t)profile_int(profile, "memory_mib"),
    };
    return OK;
}

#endif
