"""Recording a training run."""
