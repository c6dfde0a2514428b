{{/* A PodMonitor whose job is its name. The context: dict "root" $ "name" NAME "labels" TEMPLATE "selector" TEMPLATE. */}}
{{- define "hsm-signer.podMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include .labels .root | nindent 4 }}
    {{- with .root.Values.monitoring.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels: {{- include .selector .root | nindent 6 }}
  podMetricsEndpoints:
    - port: health
      path: /metrics
      interval: {{ .root.Values.monitoring.interval }}
      relabelings:
        - targetLabel: job # with signer, names this installation in alerts and the dashboard
          replacement: {{ .name }}
        - targetLabel: signer
          replacement: {{ join "," .root.Values.signerNames }}
        - sourceLabels: [__meta_kubernetes_pod_name] # the pod's name, not its address
          targetLabel: instance
{{- end -}}
