{{- define "hsm-signer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The prefix of every name: the release's, with the chart's unless it is in it. */}}
{{- define "hsm-signer.fullname" -}}
{{- $name := include "hsm-signer.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* The name of objects outside the release's namespace: releases of one name in two namespaces do not collide. */}}
{{- define "hsm-signer.clusterName" -}}
{{- $name := include "hsm-signer.fullname" . -}}
{{- if eq $name .Release.Namespace -}}{{ $name }}{{- else -}}{{ .Release.Namespace }}-{{ $name }}{{- end -}}
{{- end -}}

{{- define "hsm-signer.selector" -}}
app.kubernetes.io/name: {{ include "hsm-signer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hsm-signer.healSelector" -}}
app.kubernetes.io/name: {{ include "hsm-signer.name" . }}-heal
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hsm-signer.commonLabels" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "hsm-signer.labels" -}}
{{ include "hsm-signer.selector" . }}
{{ include "hsm-signer.commonLabels" . }}
{{- end -}}

{{- define "hsm-signer.healLabels" -}}
{{ include "hsm-signer.healSelector" . }}
{{ include "hsm-signer.commonLabels" . }}
{{- end -}}

{{- define "hsm-signer.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "hsm-signer.storageClass" -}}
{{- .Values.state.storageClass | default (include "hsm-signer.clusterName" .) -}}
{{- end -}}

{{- define "hsm-signer.caConfigMap" -}}
{{- .Values.ca.configMap | default (printf "%s-ca" (include "hsm-signer.fullname" .)) -}}
{{- end -}}

{{- define "hsm-signer.policyConfigMap" -}}
{{- .Values.policy.configMap | default (printf "%s-policy" (include "hsm-signer.fullname" .)) -}}
{{- end -}}

{{- define "hsm-signer.hasPolicy" -}}
{{- if or .Values.policy.text .Values.policy.configMap -}}true{{- end -}}
{{- end -}}

{{/* The names of the leases, in JSON: that of the release, or one for each CA of the configuration. */}}
{{- define "hsm-signer.leases" -}}
{{- $leases := list -}}
{{- $file := fromYaml .Values.configuration -}}
{{- $prefix := dig "common" "LEASE_NAME" "hsm-signer" $file -}}
{{- range $ca, $settings := $file.cas -}}
{{- $leases = append $leases (get $settings "LEASE_NAME" | default (printf "%s-%s" $prefix $ca)) -}}
{{- end -}}
{{- $leases | default (list (include "hsm-signer.fullname" .)) | toJson -}}
{{- end -}}

{{/* The settings of hsm-signer, with those of the value "environment" on top. */}}
{{- define "hsm-signer.environment" -}}
{{- if .Values.configuration -}}
{{- merge (deepCopy .Values.environment) (dict "LISTEN_ADDRESS" ":8080" "CONFIG_FILE" "/etc/hsm-signer/config/config.yaml") | toYaml -}}
{{- else -}}
{{- $env := dict "SIGNER_NAME" (join "," .Values.signerNames) "LISTEN_ADDRESS" ":8080" "CA_CERT_FILE" "/etc/hsm-signer/ca/ca.crt" "CA_KEY_LABEL" .Values.ca.keyLabel "PKCS11_MODULE" .Values.hsm.module -}}
{{- if .Values.pin.secret -}}{{- $_ := set $env "PKCS11_PIN_FILE" (printf "/etc/hsm-signer/pin/%s" .Values.pin.key) -}}{{- end -}}
{{- with .Values.hsm.tokenLabel -}}{{- $_ := set $env "PKCS11_TOKEN_LABEL" . -}}{{- end -}}
{{- if include "hsm-signer.hasPolicy" . -}}{{- $_ := set $env "POLICY_FILE" "/etc/hsm-signer/policy/policy.yaml" -}}{{- end -}}
{{- if .Values.cleanUp.enabled -}}{{- $_ := set $env "DELETE_FINISHED_AFTER" .Values.cleanUp.after -}}{{- end -}}
{{- if .Values.podCertificates.enabled -}}{{- $_ := set $env "POD_CERTIFICATES" "true" -}}{{- end -}}
{{- with .Values.podCertificates.trustDomain -}}{{- $_ := set $env "TRUST_DOMAIN" . -}}{{- end -}}
{{- if .Values.trustBundle.enabled -}}{{- $_ := set $env "TRUST_BUNDLE_FILE" (printf "/etc/hsm-signer/ca/%s" .Values.trustBundle.file) -}}{{- end -}}
{{- with .Values.trustBundle.namespaces -}}{{- $_ := set $env "TRUST_BUNDLE_NAMESPACES" (join "," .) -}}{{- end -}}
{{- $name := include "hsm-signer.fullname" . -}}
{{- if ne $name "hsm-signer" -}}{{- $_ := set $env "LEASE_NAME" $name -}}{{- end -}}
{{- merge (deepCopy .Values.environment) $env | toYaml -}}
{{- end -}}
{{- end -}}

{{- define "hsm-signer.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What both pods have: service account, placement, user. The context: dict "root" $ "account" NAME "fsGroup" BOOL. */}}
{{- define "hsm-signer.podCommon" -}}
{{- $root := .root -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if $root.Values.hostNetwork }}
hostNetwork: true
dnsPolicy: Default
{{- end }}
{{- $tolerations := $root.Values.tolerations }}
{{- if $root.Values.hostNetwork }}
{{- $tolerations = concat $tolerations (list (dict "key" "node.kubernetes.io/not-ready" "operator" "Exists" "effect" "NoSchedule") (dict "key" "node.kubernetes.io/network-unavailable" "operator" "Exists" "effect" "NoSchedule")) }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $security := deepCopy $root.Values.podSecurityContext }}
{{- if not .fsGroup }}{{- $security = omit $security "fsGroup" "fsGroupChangePolicy" }}{{- end }}
securityContext: {{- toYaml $security | nindent 2 }}
{{- end -}}

{{- define "hsm-signer.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: health}
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* The mistakes that a schema cannot describe. */}}
{{- define "hsm-signer.validate" -}}
{{- if hasKey .Values.environment "PKCS11_PIN" -}}
{{- fail "environment.PKCS11_PIN: values are no place for the PIN; put it into the Secret that pin.secret names" -}}
{{- end -}}
{{- if hasKey .Values.environment "SIGNER_NAME" -}}
{{- fail "environment.SIGNER_NAME: set signerNames, which also grants the rights" -}}
{{- end -}}
{{- if not (or .Values.image.tag .Values.image.digest) -}}
{{- fail "image: set image.digest to the digest of the image that you reviewed, or image.tag" -}}
{{- end -}}
{{- if .Values.configuration -}}
{{- include "hsm-signer.validateConfiguration" . -}}
{{- else if not .Values.hsm.module -}}
{{- fail "hsm.module: no library; name its path in the container" -}}
{{- else if not (or .Values.ca.certificate .Values.ca.configMap .Values.environment.CA_CERT_FILE) -}}
{{- fail "ca: no CA certificate; set it with --set-file ca.certificate=ca.crt, or name a ConfigMap with ca.configMap" -}}
{{- end -}}
{{- if and .Values.ca.certificate (not (contains "-----BEGIN CERTIFICATE-----" .Values.ca.certificate)) -}}
{{- fail "ca.certificate: this is no certificate in PEM; set it with --set-file ca.certificate=ca.crt" -}}
{{- end -}}
{{- if and .Values.ca.certificate .Values.ca.configMap -}}
{{- fail "ca: certificate and configMap are both set; remove one" -}}
{{- end -}}
{{- if and .Values.policy.text .Values.policy.configMap -}}
{{- fail "policy: text and configMap are both set; remove one" -}}
{{- end -}}
{{- if not (or .Values.pin.secret .Values.environment.PKCS11_PIN_FILE .Values.configuration) -}}
{{- fail "pin: no PIN; name the Secret that holds it with pin.secret" -}}
{{- end -}}
{{- if and .Values.state.localVolumes (ne (len .Values.state.localVolumes) (int .Values.replicas)) -}}
{{- fail (printf "state.localVolumes: %d volumes for %d replicas; list one for each replica" (len .Values.state.localVolumes) (int .Values.replicas)) -}}
{{- end -}}
{{- end -}}

{{/* The mistakes of several CAs that a person would see only when the rights are missing. */}}
{{- define "hsm-signer.validateConfiguration" -}}
{{- $file := fromYaml .Values.configuration -}}
{{- with $file.Error -}}
{{- fail (printf "configuration: it is no YAML: %s" .) -}}
{{- end -}}
{{- $names := list -}}
{{- range $ca, $settings := $file.cas -}}
{{- $names = concat $names (splitList "," (get $settings "SIGNER_NAME" | nospace)) -}}
{{- end -}}
{{- if ne (sortAlpha $names | join ", ") (sortAlpha .Values.signerNames | join ", ") -}}
{{- fail (printf "configuration: its CAs serve [%s], and signerNames grants the rights for [%s]; name the same" (sortAlpha $names | join ", ") (sortAlpha .Values.signerNames | join ", ")) -}}
{{- end -}}
{{- if or .Values.hsm.module .Values.hsm.tokenLabel -}}
{{- fail "hsm: module and tokenLabel are of one CA; with configuration, set PKCS11_URI of each CA there" -}}
{{- end -}}
{{- if .Values.heal.enabled -}}
{{- fail "heal: it is for one CA; with configuration, run hsm-signer heal --ca elsewhere (docs/calico.md)" -}}
{{- end -}}
{{- end -}}
