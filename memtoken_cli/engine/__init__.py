"""The engine: memories, backbones, fitting. It never imports a method."""
