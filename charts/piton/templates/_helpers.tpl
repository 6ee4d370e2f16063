{{- define "piton.name" -}}
{{- printf "%s-operator" (.Release.Name | trunc 50 | trimSuffix "-") }}
{{- end }}

{{- define "piton.selector" -}}
app.kubernetes.io/name: piton-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "piton.labels" -}}
{{ include "piton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "piton.tlsSecret" -}}
{{- .Values.progress.tls.secretName | default (printf "%s-tls" (include "piton.name" .)) }}
{{- end }}

{{- define "piton.host" -}}
{{ include "piton.name" . }}.{{ .Release.Namespace }}.svc
{{- end }}
