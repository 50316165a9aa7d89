"""Vision: image classifiers over timm models, and ScaleNet, which deepens them."""
