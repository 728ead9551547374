//! kubectl 1.37, unmodified, command by command, and Debian's kubectl 1.20 as an old Go client. What is expected is what
//! kube-apiserver and kubelet make kubectl say.

mod access;
mod apply;
mod deleting;
mod nodes;
mod old;
mod reading;
mod storage;
mod streams;
mod workloads;
mod writing;

/// A Deployment named `web` of web servers and a Service before it.
const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: python:3.11
        command: [python3, -u, -m, http.server, '8000']
        ports: [{name: http, containerPort: 8000}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
";

/// A pod that waits, quick to stop.
const IDLE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: idle, labels: {app: idle}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'python:3.11', command: [sleep, infinity]}]
";

/// A definition of Widgets in the group `GROUP`.
const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {kind: Widget, plural: widgets, singular: widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Colour, type: string, jsonPath: .spec.colour, priority: 1}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the widget is to be.
            required: [size]
            properties:
              size: {type: integer, minimum: 0, description: How many parts it has.}
              colour: {type: string, default: grey, enum: [grey, red]}
          status:
            type: object
            properties: {size: {type: integer}, phase: {type: string}}
";
