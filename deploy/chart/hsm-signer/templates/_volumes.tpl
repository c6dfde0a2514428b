{{/* The volumes of hsm-signer's pod, without the journal's. */}}
{{- define "hsm-signer.volumes" -}}
{{- $volumes := list -}}
{{- if or .Values.ca.certificate .Values.ca.configMap -}}
{{- $volumes = append $volumes (dict "name" "ca" "configMap" (dict "name" (include "hsm-signer.caConfigMap" .))) -}}
{{- end -}}
{{- if .Values.configuration -}}
{{- $volumes = append $volumes (dict "name" "config" "configMap" (dict "name" (printf "%s-config" (include "hsm-signer.fullname" .)))) -}}
{{- end -}}
{{- with .Values.pin.secret -}}
{{- $volumes = append $volumes (dict "name" "pin" "secret" (dict "secretName" . "defaultMode" 0440)) -}}
{{- end -}}
{{- if include "hsm-signer.hasPolicy" . -}}
{{- $volumes = append $volumes (dict "name" "policy" "configMap" (dict "name" (include "hsm-signer.policyConfigMap" .))) -}}
{{- end -}}
{{- if .Values.hsm.config -}}
{{- $volumes = append $volumes (dict "name" "hsm-config" "configMap" (dict "name" (printf "%s-hsm" (include "hsm-signer.fullname" .)))) -}}
{{- end -}}
{{- range .Values.hsm.localVolumes -}}
{{- $claim := dict "claimName" (printf "%s-%s" (include "hsm-signer.fullname" $) .name) -}}
{{- if .readOnly -}}{{- $_ := set $claim "readOnly" true -}}{{- end -}}
{{- $volumes = append $volumes (dict "name" .name "persistentVolumeClaim" $claim) -}}
{{- end -}}
{{- with concat $volumes .Values.hsm.volumes -}}
volumes: {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* A directory of a node as a volume. The context: dict "root" $ "name" NAME "claim" CLAIM "size" SIZE "node" NODE "path" PATH. */}}
{{- define "hsm-signer.localVolume" -}}
apiVersion: v1
kind: PersistentVolume
metadata:
  name: {{ .name }}
  labels: {{- include "hsm-signer.labels" .root | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  storageClassName: {{ include "hsm-signer.storageClass" .root }}
  persistentVolumeReclaimPolicy: Retain
  accessModes: [ReadWriteOnce]
  capacity: {storage: {{ .size }}}
  claimRef: {namespace: {{ .root.Release.Namespace }}, name: {{ .claim }}}
  local: {path: {{ .path }}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: kubernetes.io/hostname, operator: In, values: [{{ .node }}]}
{{- end -}}
