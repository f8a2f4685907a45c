"""Few-shot learning on the digits, so small that all of its rows take a minute."""

from __future__ import annotations

import tiny

# Four digits are SEEN; tasks of three others each choose and are scored.
GIN = f"""
include '{tiny.ROOT}/gin/data/digits.gin'
include '{tiny.ROOT}/gin/methods/few_shot.gin'

Data.class_split = @RandomParts()
RandomParts.teacher = 4
RandomParts.validation = 3
RandomParts.student = 3
Data.image_size = 16
Data.load_size = 16
Data.pad = 1
ConvNet.channels = 8
ResNet12.widths = (4, 4, 8, 8)
Recipe.epochs = 4
Recipe.batch_size = 50
meta/Recipe.classes_per_batch = 4
meta/Recipe.batch_size = 24
meta/Recipe.epochs = 2
Episodes.ways = 3
test/Episodes.count = 20
validation/Episodes.count = 8
trials.shots = (1, 4)
Selection.shots = 2
RelationshipMatching.weight = 10.0
ProtoNet.ways = 2
ProtoNet.shots = 2
ProtoNet.queries = 4
Feat.ways = 2
Feat.shots = 2
Feat.queries = 4
maml/Stage.recipe = @maml/Recipe()
maml/Recipe.epochs = 1
maml/Recipe.classes_per_batch = 3
maml/Recipe.batch_size = 18
Maml.ways = 3
Maml.shots = 2
Maml.queries = 4
Maml.inner_steps = 1
InnerLoop.steps = 2
InnerLoop.group = 4
FineTune.steps = 5
FineTune.group = 4
FineTune.first = ('logits', 'block4_conv')
FineTune.learning_rate = 0.1
Refilled.steps = 5
Refilled.group = 4
Refilled.first = 'logits'
Refilled.learning_rate = 0.1
Refilled.weight = (0.0, 1.0)
"""
