{{/* A ClusterRoleBinding. The context: dict "root" $ "name" ROLE "account" SERVICEACCOUNT. */}}
{{- define "hsm-signer.clusterBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "hsm-signer.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* A RoleBinding. The context also has "kind", that of the role, and "namespace". */}}
{{- define "hsm-signer.binding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  namespace: {{ .namespace }}
  labels: {{- include "hsm-signer.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .kind }}
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{- define "hsm-signer.podRules" -}}
- apiGroups: [""] # is the requester the live pod that it says it is?
  resources: [pods]
  verbs: [get, list]
- apiGroups: [apps] # optional: names the Deployment of a pod whose certificate ends
  resources: [replicasets]
  verbs: [get]
{{- end -}}
