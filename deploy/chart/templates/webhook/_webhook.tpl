{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* The names of resources that pods of ours name, as a CEL list: of the enabled vendors, and those that belong to nobody. */ -}}
{{- define "hami.webhook.resourceNames" -}}
{{- $known := .Files.Get "files/resource-names.yaml" | fromYaml -}}
{{- $names := concat (get $known "any") .Values.webhook.extraResourceNames -}}
{{- range $vendor := include "hami.vendors" . | fromJsonArray }}{{ $names = concat $names (get $known $vendor | default list) }}{{ end -}}
{{- $quoted := list -}}
{{- range $name := $names }}{{ $quoted = append $quoted (printf "'%s'" (get $.Values.resources.rename $name | default $name)) }}{{ end -}}
[{{ $quoted | uniq | join ", " }}]
{{- end }}

{{- /* One name of a container's limits, called r. Names of packages that are not in the image are unknown here unless they are listed:
       then every extended resource may be one (they alone have a slash). */ -}}
{{- define "hami.webhook.isOurs" -}}
{{- if and .Values.plugins.allow (not .Values.webhook.extraResourceNames) -}}
r.contains('/')
{{- else -}}
r in {{ include "hami.webhook.resourceNames" . }}
{{- end -}}
{{- end }}
