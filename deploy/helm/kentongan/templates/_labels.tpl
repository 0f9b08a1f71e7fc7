{{- define "kentongan.selector" -}}
app.kubernetes.io/name: kentongan
app.kubernetes.io/component: broker
{{- end }}
