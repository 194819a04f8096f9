"""Instances on a Ray cluster: controller, ingresses and replicas are actors; requests go over our own links."""
