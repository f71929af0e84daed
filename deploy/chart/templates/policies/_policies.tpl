{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- /* A list of user names in CEL. */ -}}
{{- define "hami.policies.list" -}}
{{- $quoted := list -}}{{- range . }}{{ $quoted = append $quoted (printf "'%s'" .) }}{{ end -}}
[{{ $quoted | join ", " }}]
{{- end }}

{{- /* CEL variables: is the writer a node agent, and of which node? A DaemonSet's token names its node (the claim is the API server's own);
       a host service has a client certificate for system:hami-agent:<node>. An agent whose node is not known is the agent of no node. */ -}}
{{- define "hami.policies.agentVariables" -}}
- name: serviceAccount
  expression: "request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:hami-agent'"
- name: hostService
  expression: "request.userInfo.username.startsWith('system:hami-agent:')"
- name: isAgent
  expression: "variables.serviceAccount || variables.hostService"
- name: node
  expression: >-
    variables.serviceAccount ? request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')
    : variables.hostService ? request.userInfo.username.substring(18) : ''
- name: trusted
  expression: "request.userInfo.username in {{ include "hami.policies.list" .Values.policies.trustedUsers }}"
- name: name
  expression: "request.operation == 'DELETE' ? oldObject.metadata.name : object.metadata.name"
{{- end }}

{{- /* The binding that puts a policy into force. */ -}}
{{- define "hami.policies.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "hami.labels" (dict "root" .root "component" "policies") | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}
