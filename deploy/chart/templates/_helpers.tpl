{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- /* Used by every component. Call them with the root context, or with (dict "root" $ "component" "agent"). */ -}}

{{- define "hami.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- if hasPrefix "sha256:" $tag }}{{ .Values.image.repository }}@{{ $tag }}{{ else }}{{ .Values.image.repository }}:{{ $tag }}{{ end -}}
{{- end }}

{{- /* What identifies the pods of a component: never changed within a major version, selectors cannot be. */ -}}
{{- define "hami.selectorLabels" -}}
app.kubernetes.io/name: hami
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "hami.labels" -}}
{{ include "hami.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: hami-framework
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- /* Names of the vendors that are loaded, as a JSON list. */ -}}
{{- define "hami.vendors" -}}
{{- $names := list -}}
{{- range $name, $vendor := .Values.vendors }}{{ if $vendor.enabled }}{{ $names = append $names $name }}{{ end }}{{ end -}}
{{- concat $names .Values.plugins.allow | uniq | toJson -}}
{{- end }}

{{- /* The settings file that all components read. */ -}}
{{- define "hami.settings" -}}
{{- $sections := deepCopy .Values.plugins.settings -}}
{{- range $name, $vendor := .Values.vendors }}{{ if and $vendor.enabled $vendor.settings }}{{ $_ := set $sections $name $vendor.settings }}{{ end }}{{ end -}}
plugins:
  allow: {{ include "hami.vendors" . }}
{{- with .Values.resources.rename }}
resources:
  rename:
    {{- toYaml . | nindent 4 }}
{{- end }}
placement:
  nodePolicy: {{ .Values.scheduler.nodePolicy }}
  devicePolicy: {{ .Values.scheduler.devicePolicy }}
  reservationSeconds: {{ .Values.scheduler.reservationSeconds }}
  authority: {{ .Values.scheduler.authority }}
{{- with .Values.nodes }}
nodes:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $sections }}
vendors:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "hami.settingsChecksum" -}}
checksum/settings: {{ include "hami.settings" . | sha256sum }}
{{- end }}

{{- /* Volumes and mounts that every container of ours has: settings, and extra vendors' packages. */ -}}
{{- define "hami.commonVolumes" -}}
- name: settings
  configMap: {name: hami-settings}
{{- with .Values.plugins.wheelsVolume }}
- name: wheels
  {{- toYaml . | nindent 2 }}
- name: plugins
  emptyDir: {sizeLimit: 512Mi}
{{- end }}
{{- end }}

{{- define "hami.commonMounts" -}}
- {name: settings, mountPath: /etc/hami, readOnly: true}
{{- if .Values.plugins.wheelsVolume }}
- {name: plugins, mountPath: /opt/hami/plugins, readOnly: true}
{{- end }}
{{- end }}

{{- define "hami.commonEnv" -}}
# Less memory: no asserts and doc strings, one malloc arena.
- {name: PYTHONOPTIMIZE, value: "2"}
- {name: MALLOC_ARENA_MAX, value: "1"}
# The root file system is read-only.
- {name: PYTHONDONTWRITEBYTECODE, value: "1"}
{{- if .Values.plugins.wheelsVolume }}
- {name: PYTHONPATH, value: /opt/hami/plugins}
{{- end }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
{{- end }}

{{- /* Restricted, as pod security calls it: for everything that does not run on behalf of a node. */ -}}
{{- define "hami.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "hami.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Unpacks the wheels of the volume into a folder that Python looks into: offline, without pip. What they need must lie beside them. */ -}}
{{- define "hami.wheelsInit" -}}
{{- if .root.Values.plugins.wheelsVolume }}
- name: plugins
  image: {{ include "hami.image" .root | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python3, -m, hami_framework.config.wheels, /wheels, /opt/hami/plugins]
  env:
    - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    {{- if ne .component "agent" }}
    runAsNonRoot: true
    {{- end }}
    capabilities: {drop: [ALL]}
  resources:
    requests: {cpu: 10m, memory: 64Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: wheels, mountPath: /wheels, readOnly: true}
    - {name: plugins, mountPath: /opt/hami/plugins}
{{- end }}
{{- end }}

{{- define "hami.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Replicas of a component on different nodes. Call with root, component and the component's values. */ -}}
{{- define "hami.antiAffinity" -}}
podAntiAffinity:
{{- if eq .values.antiAffinity "required" }}
  requiredDuringSchedulingIgnoredDuringExecution:
    - topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- include "hami.selectorLabels" . | nindent 10 }}
{{- else }}
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "hami.selectorLabels" . | nindent 12 }}
{{- end }}
{{- end }}

{{- define "hami.policiesServed" -}}
{{- if and .Values.policies.enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) }}yes{{ end -}}
{{- end }}
